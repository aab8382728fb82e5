"""contextseg-train on CPUs as one of several processes, under FSDP and DeepSpeed too, which accelerate starts on GPUs only.

`DIE=1:3` in the environment kills process 1 in its third step, and `HANG=1:3` stops it like a debugger; `STOP=3` asks all to
stop after the third.
"""

import os
import signal
import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from contextseg.scripts.train import main
from contextseg.training import loop


def shard_on_cpus():
    """What `AcceleratorState` does for GPUs with the plugin that the launcher asks for, torch does on CPUs as well."""
    begin = AcceleratorState.__init__

    def begin_sharded(self, *arguments, fsdp_plugin=None, deepspeed_plugin=None, **options):
        is_first = not self.initialized
        begin(self, *arguments, fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin, **options)
        if is_first and fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        if is_first and deepspeed_plugin is not None:
            PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
            self.distributed_type, self.deepspeed_plugins = DistributedType.DEEPSPEED, deepspeed_plugin
            deepspeed_plugin.set_mixed_precision("no")
            deepspeed_plugin.select(_from_accelerator_state=True)

    AcceleratorState.__init__ = begin_sharded


def send(number, step, rank=None):
    """This process a signal while it does that step, if it is the one."""

    def optimizer_step(training, *arguments):
        if training.step + 1 == step and rank in (None, training.accelerator.process_index):
            os.kill(os.getpid(), number)
        return real(training, *arguments)

    real, loop.optimizer_step = loop.optimizer_step, optimizer_step


if __name__ == "__main__":
    shard_on_cpus()
    for name, number in (("DIE", signal.SIGKILL), ("HANG", signal.SIGSTOP)):
        if name in os.environ:
            rank, step = map(int, os.environ[name].split(":"))
            send(number, step, rank)
    if "STOP" in os.environ:
        send(signal.SIGTERM, int(os.environ["STOP"]))
    sys.exit(main())
