"""Sends rounds of messages and writes one line for each round."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config: dict[str, Any] = dict(context.run_config)
    if config["quick"]:
        # As server.fleetapp does for our own runs.
        from server.flowermessages import pull_without_delay

        pull_without_delay()
    out, wanted = Path(config["out"]), config["nodes"]
    while len(nodes := sorted(grid.get_node_ids())) < wanted:
        time.sleep(0.2)
    for number in range(1, config["rounds"] + 1):
        with out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_round(grid, nodes, number, config)) + "\n")


def _round(grid: Grid, nodes: list[int], number: int, config: dict[str, Any]) -> dict[str, Any]:
    array = np.full(config["size"], number, dtype=np.float32)
    pause = float(config["start"] or 0.0)
    messages = [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({"v": Array(array)}),
                    "asked": ConfigRecord({"pause": pause, "round": number}),
                }
            ),
            node,
            "train",
            ttl=config["patience"],
            group_id=str(number),
        )
        for node in nodes
    ]
    started, answers = time.monotonic(), []
    waiting, pulling = set(grid.push_messages(messages)), 0.0
    while waiting and time.monotonic() - started < config["patience"]:
        asked = time.monotonic()
        replies = list(grid.pull_messages(waiting))
        pulling = max(pulling, time.monotonic() - asked)
        for reply in replies:
            waiting.discard(reply.metadata.reply_to_message_id)
            answers.append({"node": str(reply.metadata.src_node_id), **_read(reply)})
        time.sleep(0.02)
    seconds = time.monotonic() - started
    return {"round": number, "seconds": seconds, "pulling": pulling, "answers": answers}


def _read(reply: Message) -> dict[str, Any]:
    if reply.has_error():
        return {"error": reply.error.reason}
    if "fedslm" in reply.content:
        return {"failure": dict(reply.content["fedslm"])}
    arrays = reply.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    values = arrays["v"].numpy()
    answer: Any = reply.content["answer"]
    return {"values": [float(values.min()), float(values.max())], **dict(answer)}
