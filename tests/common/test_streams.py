"""Output that is discarded."""

import os

from transfer.common.streams import discarded


def test_output_is_discarded_within_the_block_alone(capfd):
    os.write(2, b"before ")
    with discarded(1, 2):
        os.write(1, b"inside")
        os.write(2, b"inside")
    os.write(2, b"after")
    assert capfd.readouterr() == ("", "before after")


def test_one_stream_can_stay(capfd):
    with discarded(2):
        os.write(1, b"seen")
        os.write(2, b"inside")
    assert capfd.readouterr() == ("seen", "")
