"""Adds one; counts in its state; says in which process it runs."""

import os
import time

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    records = message.content
    arrays, asked = records["arrays"], records["asked"]
    assert isinstance(arrays, ArrayRecord)
    assert isinstance(asked, ConfigRecord)
    if isinstance(pause := asked["pause"], float):
        time.sleep(pause)
    kept = context.state.get("kept")
    count = kept["count"] + 1 if isinstance(kept, MetricRecord) else 1  # type: ignore[operator]
    context.state["kept"] = MetricRecord({"count": count})
    partition = context.node_config["partition-id"]
    assert isinstance(partition, int)
    answer = {"count": count, "pid": os.getpid(), "partition": partition}
    return Message(
        RecordDict(
            {
                "arrays": ArrayRecord({"v": Array(arrays["v"].numpy() + 1)}),
                "answer": MetricRecord(answer),
            }
        ),
        reply_to=message,
    )
