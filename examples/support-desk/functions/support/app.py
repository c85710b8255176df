"""Customer service of a small shop: an AWS Lambda handler behind an HTTP API.

POST {"question": "..."} is answered from the order table and a few frequently
asked questions. Nothing here knows of Penstock.
"""

import base64
import json
import re

ORDERS = {
    "1001": {"item": "Copper kettle", "status": "delivered", "detail": "on Monday, left with your neighbour"},
    "1002": {"item": "Brass tap", "status": "on its way", "detail": "the parcel arrives tomorrow before noon"},
    "1003": {"item": "Garden hose, 25 m", "status": "being packed", "detail": "it leaves our warehouse today"},
}

FAQ = [
    (("refund", "money back", "return"), "refund",
     "You can return anything within 30 days; the refund reaches you within 5 working days."),
    (("ship", "delivery", "deliver"), "shipping",
     "Shipping takes 2 to 4 working days and is free above 50 euros."),
    (("pay", "invoice", "card"), "payment",
     "We take cards and bank transfer; the invoice comes by e-mail."),
    (("open", "hours", "phone"), "opening hours",
     "People answer on working days from 9 to 17 h; this desk answers always."),
]


def lambda_handler(event, context):
    question = read_question(event)
    if question is None:
        return reply(context, 400, {
            "error": 'send a JSON object with your question: {"question": "Where is my order?"}',
        })
    topic, answer = find_answer(question)
    print(f"question {question!r}: {topic}")
    return reply(context, 200, {"question": question, "topic": topic, "answer": answer})


def read_question(event):
    """The question of the body; of ?question= when there is no body."""
    body = event.get("body")
    if not body:
        return (event.get("queryStringParameters") or {}).get("question", "")
    if event.get("isBase64Encoded"):
        body = base64.b64decode(body).decode("utf-8", "replace")
    try:
        question = json.loads(body).get("question")
    except (ValueError, AttributeError):
        return None
    return question if isinstance(question, str) else None


def find_answer(question):
    text = question.lower()
    for number in re.findall(r"\d{4,}", text):
        if number in ORDERS:
            order = ORDERS[number]
            return "order", f"Your order {number} ({order['item']}) is {order['status']}: {order['detail']}."
        return "order", f"There is no order {number}. The number is in the mail that confirmed your order."
    for words, topic, answer in FAQ:
        if any(word in text for word in words):
            return topic, answer
    if "order" in text or "parcel" in text:
        number, order = list(ORDERS.items())[1]
        return "order", (f"Your latest order is {number} ({order['item']}). It is {order['status']}: "
                         f"{order['detail']}. Name another order by its number.")
    return "unknown", "I can help with an order, shipping, refunds, payment and opening hours."


def reply(context, status, document):
    return {
        "statusCode": status,
        "headers": {
            "content-type": "application/json",
            # Which of the instances answered: on AWS, too, one log stream is one
            # instance.
            "x-instance": context.log_stream_name,
        },
        "body": json.dumps(document) + "\n",
    }
