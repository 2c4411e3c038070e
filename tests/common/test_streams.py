"""Output streams: discarded output, missing streams, closed pipes and other encodings."""

import contextlib
import io
import logging
import os
import sys

import pytest

from transfer.common import streams
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


def test_a_program_without_streams_gets_them_for_the_command_alone(monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)

    @streams.command
    def main(arguments=None):
        sys.stdout.write("lost")
        sys.stderr.write(sys.stdin.read())
        with discarded(2):
            return 3

    assert main() == 3
    assert sys.stdin is sys.stdout is sys.stderr is None


def test_without_standard_error_a_progress_bar_is_hidden(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with streams.progress_bar(total=5000) as bar:
        bar.update(10)
    assert bar.disable


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_text_that_the_encoding_lacks_is_escaped(encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))

    @streams.command
    def main(arguments=None):
        streams.print_text("猫")
        return 0

    assert main() == 0
    assert sys.stdout.buffer.getvalue() == b"\\u732b"
    assert not streams.writes_unicode(sys.stdout)


@contextlib.contextmanager
def closed_pipe():
    """Standard output becomes a pipe whose reader has closed it."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
        yield stream


def test_the_exit_code_survives_a_closed_pipe():
    @streams.command
    def main(arguments=None):
        streams.print_text("a report")
        return 2

    with closed_pipe():
        assert main() == 2


def test_a_command_that_prints_to_a_closed_pipe_ends_without_an_error():
    @streams.command
    def main(arguments=None):
        while True:
            sys.stdout.write("a row\n")

    with closed_pipe():
        assert main() == 0


def test_a_log_into_a_closed_pipe_stops_quietly(capsys):
    with closed_pipe() as stream:
        handler = streams.LogHandler(stream)
        for _ in range(2):
            handler.emit(logging.makeLogRecord({"msg": "a line"}))
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("buffered", [True, False])  # PYTHONUNBUFFERED
def test_a_full_disk_behind_standard_output_is_one_sentence(buffered, monkeypatch, capsys):
    raw = open("/dev/full", "wb", buffering=-1 if buffered else 0)  # noqa: SIM115
    with io.TextIOWrapper(raw, encoding="utf-8", write_through=not buffered) as stream:
        monkeypatch.setattr(sys, "stdout", stream)

        @streams.command
        def main(arguments=None):
            streams.print_text("a report")
            return 0

        assert main() == 2
    assert capsys.readouterr().err == "Cannot write to standard output: no space left on device.\n"


def test_other_errors_of_files_are_not_those_of_standard_output():
    @streams.command
    def main(arguments=None):
        raise FileNotFoundError(2, "No such file", "gone")

    with pytest.raises(FileNotFoundError):
        main()
