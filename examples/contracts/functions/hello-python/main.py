import functions_framework


@functions_framework.http
def hello(request):
    name = request.args.get("name", "nobody")
    if name == "error":
        raise ValueError("no such name")
    return {"hello": name, "path": request.path}
