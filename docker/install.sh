#!/bin/sh
# Install what sfumato needs for some of its extras into /opt/sfumato, over what is in /opt/torch where that is there: install.sh EXTRAS
# Its own code is not here: the images copy that on top.
set -eu
python3 -m venv /opt/sfumato
site() { "$1/bin/python" -c 'import site; print(site.getsitepackages()[0])'; }
if [ -d /opt/torch ]; then
  site /opt/torch > "$(site /opt/sfumato)/torch.pth"
fi
# Its metadata and its commands, by way of empty packages.
touch /source/README.md
for package in sfumato services orchestrator; do
  mkdir "/source/$package" && touch "/source/$package/__init__.py"
done
/opt/sfumato/bin/pip install --quiet --no-cache-dir --disable-pip-version-check "/source[$1]" -c /source/constraints.txt
for package in sfumato services orchestrator; do
  rm -r "$(site /opt/sfumato)/$package"
done
# The CPU build of vLLM names these two for sound and film; their CUDA wheels do not import beside CPU torch.
/opt/sfumato/bin/pip uninstall --quiet --yes torchaudio torchcodec 2>/dev/null || true
# What runs installs nothing; but vLLM's PyTorch imports the one of these two that only builds.
[ "$1" = vlm ] || /opt/sfumato/bin/pip uninstall --quiet --yes setuptools
/opt/sfumato/bin/pip uninstall --quiet --yes pip
