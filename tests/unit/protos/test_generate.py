"""The generated stubs are what the contract generates; the contract keeps buf's rules and what was released."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from protos.generate import PROTOS, RELEASED, ROOT, describe, generate

BUF = Path(sysconfig.get_path("scripts")) / "buf"


def buf(*arguments: object) -> tuple[int, str]:
    """The exit status and the words of buf: 0 is all well, 100 is something to mend."""
    line = [str(BUF), *map(str, arguments), "--config", str(PROTOS / "buf.yaml")]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def test_the_stubs_in_the_package_are_generated_from_the_contract(tmp_path: Path) -> None:
    names = generate(tmp_path)
    here = sorted(path.relative_to(ROOT) for path in (ROOT / "sfumato" / "v1").iterdir() if path.is_file())
    assert names == here, "run make protos"
    for name in names:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes(), f"{name}: run make protos"


def test_the_contract_keeps_bufs_rules_and_has_a_comment_on_everything(tmp_path: Path) -> None:
    describe(tmp_path / "now.binpb", comments=True)
    assert buf("lint", tmp_path / "now.binpb") == (0, "")


def test_the_contract_breaks_nothing_that_was_released(tmp_path: Path) -> None:
    describe(tmp_path / "now.binpb")
    assert buf("breaking", tmp_path / "now.binpb", "--against", RELEASED) == (0, "")


def test_a_field_that_is_removed_or_renumbered_or_of_another_type_breaks_the_contract(tmp_path: Path) -> None:
    files = FileDescriptorSet.FromString(RELEASED.read_bytes())
    (common,) = (file for file in files.file if file.name == "sfumato/v1/common.proto")
    messages = {message.name: message for message in common.message_type}
    del messages["Region"].field[0]
    messages["AdapterRef"].field[1].number = 9
    messages["Box"].field[2].type = messages["Box"].field[2].TYPE_STRING
    (tmp_path / "now.binpb").write_bytes(files.SerializeToString())
    status, told = buf("breaking", tmp_path / "now.binpb", "--against", RELEASED)
    assert status == 100
    assert '"prompt" on message "Region"' in told and '"weight" on message "AdapterRef"' in told and '"x2" on message "Box"' in told
