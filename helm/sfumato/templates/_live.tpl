{{/*
What Kubernetes does not let an upgrade change, compared with the cluster: a value that needs such a change is refused in a sentence.
Without a cluster (`helm template`, GitOps) lookup finds nothing, and docs/operators.md says what to do by hand.
*/}}

{{/* The bytes of a quantity. */}}
{{- define "sfumato.bytes" -}}
{{- $factors := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 -}}
{{- $suffix := regexFind "[A-Za-z]*$" . -}}
{{- printf "%.0f" (mulf (trimSuffix $suffix . | float64) (dig $suffix 1.0 $factors)) }}
{{- end }}

{{/* The claim that NATS's StatefulSet in the cluster has a template of, as YAML; nothing where there is none. */}}
{{- define "sfumato.natsLive" -}}
{{- $live := lookup "apps/v1" "StatefulSet" .Release.Namespace (printf "%s-nats" (include "sfumato.name" .)) -}}
{{- with $live }}{{ (first .spec.volumeClaimTemplates).spec | toYaml }}{{ end }}
{{- end }}

{{- define "sfumato.storageClass" -}}
{{- (index . 1).storageClass | default ((index . 0).Values.global | default dict | dig "defaultStorageClass" "") }}
{{- end }}

{{/* The class of NATS's claims: of the values, or as it is where these name none. */}}
{{- define "sfumato.natsStorageClass" -}}
{{- $wanted := include "sfumato.storageClass" (list . .Values.nats.volume) -}}
{{- $live := include "sfumato.natsLive" . | fromYaml -}}
{{- if and $live $wanted (ne $wanted ($live.storageClassName | default "")) }}
{{- fail (printf "nats.volume.storageClass: the claims of the StatefulSet %s-nats have the class %q, and Kubernetes cannot change it to %q. Leave it; docs/operators.md, Enlarging volumes, says how to move." (include "sfumato.name" .) ($live.storageClassName | default "") $wanted) }}
{{- end -}}
{{- if $live }}{{ $live.storageClassName | default "" }}{{ else }}{{ $wanted }}{{ end }}
{{- end }}

{{/* Whether NATS's claims are to be larger than they are. Smaller ones there cannot be. */}}
{{- define "sfumato.natsGrows" -}}
{{- $live := include "sfumato.natsLive" . | fromYaml -}}
{{- if and $live (not .Values.bus.external.url) -}}
{{- $size := $live.resources.requests.storage -}}
{{- $now := include "sfumato.bytes" $size | float64 }}{{ $wanted := include "sfumato.bytes" .Values.nats.volume.size | float64 -}}
{{- if lt $wanted $now }}
{{- fail (printf "nats.volume.size: the claims of the StatefulSet %s-nats have %s, and Kubernetes does not make a volume smaller: set at least %s." (include "sfumato.name" .) $size $size) }}
{{- end -}}
{{- if gt $wanted $now }}true{{ end -}}
{{- end -}}
{{- end }}

{{/* A claim's spec: as the values say, where nothing immutable of the claim that is there differs. Takes (list $ name volume path-of-value). */}}
{{- define "sfumato.claimSpec" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}{{ $volume := index . 2 }}{{ $path := index . 3 -}}
{{- $class := include "sfumato.storageClass" (list $root $volume) -}}
{{- $live := (lookup "v1" "PersistentVolumeClaim" $root.Release.Namespace $name).spec -}}
{{- if $live -}}
{{- if and $class (ne $class ($live.storageClassName | default "")) }}
{{- fail (printf "%s.storageClass: the claim %s has the class %q, and Kubernetes cannot change it to %q. Leave it, or name a claim of your own in %s.existingClaim." $path $name ($live.storageClassName | default "") $class $path) }}
{{- end -}}
{{- if ne ($volume.accessModes | sortAlpha | join ",") ($live.accessModes | sortAlpha | join ",") }}
{{- fail (printf "%s.accessModes: the claim %s has %s, and Kubernetes cannot change it to %s. Leave it, or name a claim of your own in %s.existingClaim." $path $name (join "," $live.accessModes) (join "," $volume.accessModes) $path) }}
{{- end -}}
{{- $size := $live.resources.requests.storage -}}
{{- if lt (include "sfumato.bytes" $volume.size | float64) (include "sfumato.bytes" $size | float64) }}
{{- fail (printf "%s.size: the claim %s has %s, and Kubernetes does not make a volume smaller: set at least %s." $path $name $size $size) }}
{{- end -}}
{{- $class = $live.storageClassName | default "" -}}
{{- end -}}
accessModes: {{- toYaml $volume.accessModes | nindent 2 }}
{{- with $class }}
storageClassName: {{ . }}
{{- end }}
resources: {requests: {storage: {{ $volume.size }}}}
{{- end }}

{{/* A release keeps its names: with other names it would start with empty volumes beside its old ones. */}}
{{- define "sfumato.keepsNames" -}}
{{- if .Release.IsUpgrade -}}
{{- $name := printf "%s-nats" (include "sfumato.name" .) -}}
{{- range (lookup "apps/v1" "StatefulSet" .Release.Namespace "").items -}}
{{- $labels := .metadata.labels | default dict -}}
{{- if and (eq (dig "app.kubernetes.io/instance" "" $labels) $.Release.Name) (hasSuffix "-nats-peers" .spec.serviceName) -}}
{{- $selected := .spec.selector.matchLabels | default dict -}}
{{- if or (ne .metadata.name $name) (ne (dig "app.kubernetes.io/name" "" $selected) ($.Values.nameOverride | default $.Chart.Name)) }}
{{- fail (printf "fullnameOverride, nameOverride: this release has the names %s-..., and an upgrade to %s would leave its volumes and selectors behind. Set fullnameOverride and nameOverride as they were, or install a release beside it (docs/operators.md, Backup and restore)." (trimSuffix "-nats" .metadata.name) (trimSuffix "-nats" $name)) }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
