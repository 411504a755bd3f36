"""When a stage skips a step, goes back, cries for help, or stops."""


from unimm.config.check import check, config


@config(positive="skips_in_row skips rollback_batches", zero_or_more="spike rollbacks late_seconds")
class Guards:
    """What is watched while a stage trains. Nothing here changes a run in which nothing goes wrong."""

    skips_in_row: int = 3
    """So many steps in a row whose loss or gradient is not finite stop the run; those before are skipped."""
    skips: int = 100
    """So many skipped steps in all stop it too."""
    spike: float = 10.0
    """A loss is a spike from so many robust deviations (1.4826 median absolute deviations) above the median; 0: off."""
    spike_window: int = 128
    """Steps that median and deviation are taken over. The first so many steps are not judged."""
    rollbacks: int = 0
    """How often a spike may send the run back to its newest checkpoint from before it; 0: spikes are only reported."""
    rollback_batches: int = 100
    """How many batches, up to the spike's own, are left out after going back; none from before the checkpoint.
    PaLM restarted about 100 steps before a spike and left out 200 to 500 batches (Chowdhery et al. 2022, 5.1)."""
    late_seconds: float = 300.0
    """A rank that has not moved for so long is reported with where it stands; 0: no watchdog.
    Below the 600 seconds after which NCCL ends a process that waits."""
    end_when_late: bool = False
    """End the process half as long again after that report, with exit code 76, for a launcher that restarts runs."""

    def __post_init__(self):
        check(self, self.spike_window >= 8, "spike_window", "8 or more")
        check(self, not self.rollbacks or self.spike, "rollbacks", "0 where spike is 0 (off)")
        check(self, not self.end_when_late or self.late_seconds, "end_when_late", "False where late_seconds is 0 (off)")
