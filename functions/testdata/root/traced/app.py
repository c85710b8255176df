"""A handler that traces itself with OpenTelemetry's SDK, configured by its environment alone."""

import json
import os
import time

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

# What the function says of itself; some of it is not its to say.
forged = {"service.name": "penstock-gateway", "penstock.function": "other", "penstock.instance": "other", "faas.name": "other"} if "FORGE" in os.environ else {}
provider = TracerProvider(resource=Resource.create({**forged, "team": "shop"}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
tracer = provider.get_tracer("shop")


def handler(event, context):
    with tracer.start_as_current_span("look up the order", context=extract(event["headers"])) as span:
        span.set_attribute("order", 7)
        span.set_attribute("penstock.result", "forged")
        with tracer.start_as_current_span("ask the database"):
            time.sleep(0.001)
        own = trace.format_trace_id(span.get_span_context().trace_id)
    return {"statusCode": 200, "body": json.dumps({"trace": own, "endpoint": os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")})}
