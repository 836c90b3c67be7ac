#!/usr/bin/env bash
# Take experiments from a sweep, one after another, until none is left; run this on any number of
# machines. They share only git and the DVC remote: docs/sweeps.md.
#
#     recipes/machines/sweep.sh LIST [MACHINE]
#
# LIST: a file with one experiment per line, its name and what it changes:
#     calm decoding.temperature=0.4 decoding.top_p=0.9
# MACHINE: a unique name; by default the host name and the clone's folder.
#
# Whoever pushes refs/sweep/<commit>/<name> first gets the experiment: git rejects the others. The
# same machine gets it again when it is restarted.
set -euo pipefail
list=${1:?a file with the experiments is wanted} machine=${2:-$(hostname):$PWD} remote=origin
command -v dvc >/dev/null || {
    echo "sweep: there is no dvc: source .venv/bin/activate" >&2
    exit 1
}
commit=$(git rev-parse HEAD)
place=${commit:0:2}/${commit:2} # below refs/exps, where DVC keeps the commit's experiments
# Depends only on the machine's name, so that the machine's later claims are the same commit.
export GIT_AUTHOR_DATE=2000-01-01T00:00Z GIT_COMMITTER_DATE=2000-01-01T00:00Z
claim=$(git -c user.name=sweep -c user.email=sweep@localhost \
    commit-tree -p HEAD -m "$machine" 'HEAD^{tree}')
unset GIT_AUTHOR_DATE GIT_COMMITTER_DATE

failed=()
while read -ra words <&3 || [ ${#words[@]} -gt 0 ]; do
    name=${words[0]:-#}
    if [ "${name:0:1}" = "#" ]; then continue; fi
    ours=refs/sweep/$place/$name
    if ! git push --quiet "$remote" "$claim:$ours" 2>/dev/null; then
        git ls-remote --exit-code "$remote" "$ours" >/dev/null && continue # another machine has it
        echo "sweep: $remote does not take $ours: can you push there?" >&2
        exit 1
    fi
    if git ls-remote --exit-code "$remote" "$ours.done" >/dev/null; then continue; fi
    echo "sweep: $machine takes $name"
    changes=()
    for change in "${words[@]:1}"; do changes+=(-S "$change"); done
    if { git show-ref --quiet --verify "refs/exps/$place/$name" || # run before, and not pushed
        dvc exp run --temp --pull --name "$name" "${changes[@]}"; } &&
        dvc exp push --force --run-cache "$remote" "$name" &&
        git push --quiet "$remote" "$claim:$ours.done"; then continue; fi
    failed+=("$name")
done 3<"$list"
if [ ${#failed[@]} -gt 0 ]; then
    echo "sweep: failed, and tried again when this machine runs this again: ${failed[*]}" >&2
    exit 1
fi
