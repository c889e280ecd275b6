"""What the scripts that run TRL share."""

import time

import measure
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """A step lasts from its first microbatch to the update; its loss comes with the log."""

    def __init__(self, meter):
        self.meter, self.begin, self.seconds = meter, None, None

    def on_step_begin(self, arguments, state, control, **others):
        self.begin = time.perf_counter()

    def on_step_end(self, arguments, state, control, **others):
        self.seconds = time.perf_counter() - self.begin

    def on_log(self, arguments, state, control, logs=None, **others):
        if logs and "loss" in logs:
            self.meter.step(self.seconds, float(logs["loss"]))


def peft_config(args):
    if not args.lora:
        return None
    from peft import LoraConfig

    return LoraConfig(**measure.LORA)
