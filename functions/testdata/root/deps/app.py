import iniconfig


def handler(event, context):
    return {"file": iniconfig.__file__, "name": iniconfig.IniConfig.__name__}
