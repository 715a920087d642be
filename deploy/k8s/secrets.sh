#!/usr/bin/env bash
# Create the two secrets that the manifests name, with random passwords: ./secrets.sh [kubectl's arguments].
# Run it once; a second run replaces all passwords. KUBECTL is the kubectl to use.
set -euo pipefail
kubectl=${KUBECTL:-kubectl}
password() { LC_ALL=C tr -dc A-Za-z0-9 </dev/urandom | head -c 40 || true; }

"$kubectl" create secret generic sfumato-auth --namespace sfumato --from-file=grpc-token=<(password) "$@"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 700 "$folder"
for user in generator grounding scoring trainer orchestrator; do
  password >"$folder/$user"
  printf '%s_password: "%s"\n' "$user" "$(cat "$folder/$user")" >>"$folder/passwords.conf"
done
"$kubectl" create secret generic sfumato-bus --namespace sfumato --from-file="$folder" "$@"
