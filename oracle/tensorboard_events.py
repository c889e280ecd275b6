"""Golden TFRecords for core/src/train/tensorboard.rs, through the tensorboard package.

    python oracle/tensorboard_events.py              writes oracle/golden/tensorboard.events
    python oracle/tensorboard_events.py read DIR     prints what TensorBoard reads in DIR
"""

import pathlib
import sys

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def write(path):
    def scalars(*pairs):
        return Summary(value=[Summary.Value(tag=tag, simple_value=v) for tag, v in pairs])

    # Step 0 is written out by halter and left out by protobuf, so it is put in by hand.
    first = Event(wall_time=1234.5, file_version="brain.Event:2").SerializeToString()
    events = [
        first[:9] + b"\x10\x00" + first[9:],
        Event(wall_time=1234.5, step=5, session_log=SessionLog(status=SessionLog.START)),
        Event(
            wall_time=1234.5,
            step=5,
            summary=scalars(("train/loss", 1.25), ("eval/loss", float("nan"))),
        ),
        Event(wall_time=1234.5, step=1 << 40, summary=scalars(("train/" + "x" * 200, -0.5))),
    ]
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event if isinstance(event, bytes) else event.SerializeToString())


def read(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(directory, size_guidance={"scalars": 0})
    events.Reload()
    for tag in sorted(events.Tags()["scalars"]):
        print(tag, [(event.step, event.value) for event in events.Scalars(tag)])


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        read(sys.argv[2])
    else:
        write(pathlib.Path(__file__).parent / "golden" / "tensorboard.events")
