"""What a run tells, where it can't."""

import os

import pytest

from unimm.disk import DiskError
from unimm.train.metrics import Log


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is always full is Linux's")
def test_metrics_that_find_no_room_say_which_file_and_what_to_do(tmp_path):
    log = Log(tmp_path, 0)
    log.path.unlink()
    log.path.symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"can't write .*metrics\.jsonl: No space left on device; free the disk"):
        log.write(1, {"loss": 1.0})
