#!/usr/bin/env bash
# One row of docs/versions.md: what the package does under one release of Python and one of torch.
#
#   tests/versions.sh python3.12 2.11.0
#
# Makes an environment of its own in .cache/versions and takes it away again; with KEEP=1 it stays for the next time.
# Where torch comes as a CUDA build this downloads 3 GB and needs 8 GB of disk. What the tests print goes to
# .cache/versions/*.log.
set -euo pipefail
cd "$(dirname "$0")/.."
command=$1 torch=$2
name=$("$command" -c 'import platform; print(platform.python_version())')-torch-$torch
home=$PWD/.cache/versions
venv=$home/$name
dist=$home/$name-dist
python=$venv/bin/python
[[ ${KEEP:-} ]] || trap 'rm -rf "$venv" "$dist"' EXIT

mkdir -p "$home"
unset PYTHONPATH # what is imported outside of the checkout is to be the wheel
export TORCHINDUCTOR_CACHE_DIR=$venv/inductor OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
install=("$python" -m pip install --no-cache-dir --constraint "$venv/constraints.txt")
{
    if [[ ! -e $venv/ready ]]; then
        "$command" -m venv --clear "$venv"
        echo "torch==$torch" >"$venv/constraints.txt"
        "${install[@]}" --upgrade pip build
        "${install[@]}" "torch==$torch" numpy
        "${install[@]}" pytest hypothesis safetensors diffusers transformers accelerate peft
        touch "$venv/ready"
    fi
    rm -rf "$dist"
    "$python" -m build --outdir "$dist" .
    "${install[@]}" --no-deps --force-reinstall "$dist"/*.whl
} >"$home/$name-install.log" 2>&1 || { tail -n 20 "$home/$name-install.log"; exit 1; }

imported=$(cd "$venv" && "$python" -c 'import dicache_compile; print("yes")' || echo no)
versions=$("$python" -c '
import platform, diffusers, torch
print(platform.python_version(), "|", torch.__version__, "|", diffusers.__version__)')

failed=0
cells=$imported
for tests in contract engines/test_inductor.py use/test_pipelines.py; do
    log=$home/$name-$(basename "$tests" .py).log
    "$python" -m pytest -q -p no:cacheprovider "tests/$tests" >"$log" 2>&1 || failed=1
    # pytest's last line, without those that `make test` leaves out too, and without the time.
    cells+=" | $(tail -n 1 "$log" | sed -E 's/ in [0-9.]+s.*//; s/, [0-9]+ (deselected|warnings?)//g')"
done
echo "| $versions | $cells |"
[[ $imported == yes && $failed == 0 ]]
