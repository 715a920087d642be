#!/usr/bin/env bash
# Save a release's registry and artifacts into a folder, or bring them back:  backup.sh save|load NAMESPACE FOLDER
# For a registry in a file and artifacts on the volume. PostgreSQL has pg_dump and pg_restore, buckets their own copies: do as here,
# first the database, then the artifacts (what a database names was stored before). The bus holds nothing that would be missed.
# RELEASE names another release than sfumato; KUBECTL another kubectl.
set -euo pipefail
what=$1 namespace=$2 folder=$3
kubectl=${KUBECTL:-kubectl} release=${RELEASE:-sfumato}
registry=(exec --namespace "$namespace" "deployment/$release-registry" --container registry)
files=(exec --namespace "$namespace" "deployment/$release-orchestrator" --container orchestrator)
store=/var/lib/sfumato/artifacts

case $what in
save)
  mkdir -p "$folder"
  "$kubectl" "${registry[@]}" -- python -m services.registry.copying save >"$folder/registry.sqlite.part"
  "$kubectl" "${files[@]}" -- tar --create --file - --directory "$store" . >"$folder/artifacts.tar.part"
  mv "$folder/registry.sqlite.part" "$folder/registry.sqlite"
  mv "$folder/artifacts.tar.part" "$folder/artifacts.tar"
  ;;
load)
  # Artifacts first: nothing is named then that is not there. Files that are there already are the same and stay.
  "$kubectl" "${files[@]:0:1}" --stdin "${files[@]:1}" -- tar --extract --skip-old-files --file - --directory "$store" <"$folder/artifacts.tar"
  "$kubectl" "${registry[@]:0:1}" --stdin "${registry[@]:1}" -- python -m services.registry.copying load <"$folder/registry.sqlite"
  ;;
*)
  echo "backup.sh save|load NAMESPACE FOLDER" >&2
  exit 2
  ;;
esac
ls -l "$folder"
