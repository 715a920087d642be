#!/usr/bin/env bash
# Save a release's registry and artifacts into a folder, or restore them:  backup.sh save|load NAMESPACE FOLDER
# For a registry in a file and artifacts on a volume. With PostgreSQL use pg_dump and pg_restore, with buckets their own copies, in the
# same order: first the database, then the artifacts (artifacts are stored before a database names them). The bus needs no backup.
# RELEASE is the release (default: sfumato), KUBECTL the kubectl to use.
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
  # Artifacts first, so that the registry names only artifacts that exist. Existing files have the same content and stay.
  "$kubectl" "${files[@]:0:1}" --stdin "${files[@]:1}" -- tar --extract --skip-old-files --file - --directory "$store" <"$folder/artifacts.tar"
  "$kubectl" "${registry[@]:0:1}" --stdin "${registry[@]:1}" -- python -m services.registry.copying load <"$folder/registry.sqlite"
  ;;
*)
  echo "backup.sh save|load NAMESPACE FOLDER" >&2
  exit 2
  ;;
esac
ls -l "$folder"
