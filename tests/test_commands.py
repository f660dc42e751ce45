"""Commands forked from a warm process end like commands that were typed."""

import signal

from commands import Command


def test_a_command_ends_with_its_code_and_its_words():
    right = Command("macs", "pebbles_vit")
    assert right.communicate()[0].startswith("plain   0.049 GMACs")
    assert right.returncode == 0
    wrong = Command("macs", "pebbles_vitt")
    said, _ = wrong.communicate()
    assert wrong.returncode == 2
    assert "pebbles_vitt" in said


def test_a_command_can_be_killed(tmp_path):
    command = Command("reproduce", "--out", str(tmp_path))
    command.send_signal(signal.SIGKILL)
    assert command.wait(60) == -signal.SIGKILL
