{{/* What everything is called: fullnameOverride, or the release's name, with the chart's where that is not in it. */}}
{{- define "sfumato.name" -}}
{{- $chart := .Values.nameOverride | default .Chart.Name -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $chart .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $chart | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* What selects all pods of the release. Selectors are immutable: no value but nameOverride may change them. */}}
{{- define "sfumato.releaseSelector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* What selects a component's pods. Takes (list $ "component"). */}}
{{- define "sfumato.selector" -}}
{{ include "sfumato.releaseSelector" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* The labels of an object: commonLabels, and below them those that are the chart's own. Takes (list $ "component"). */}}
{{- define "sfumato.labels" -}}
{{- $labels := dict "app.kubernetes.io/part-of" "sfumato" -}}
{{- range $label, $value := (index . 0).Values.commonLabels }}{{ $_ := set $labels $label $value }}{{ end -}}
{{ include "sfumato.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
{{ toYaml $labels }}
{{- end }}

{{/* The metadata of every object. Takes (list $ "component" name annotations labels); the last two may be left out. */}}
{{- define "sfumato.metadata" -}}
{{- $annotations := dict -}}
{{- range $annotation, $value := (index . 0).Values.commonAnnotations }}{{ $_ := set $annotations $annotation $value }}{{ end -}}
{{- if gt (len .) 3 }}{{ range $annotation, $value := index . 3 }}{{ $_ := set $annotations $annotation $value }}{{ end }}{{ end -}}
{{- $labels := include "sfumato.labels" (list (index . 0) (index . 1)) | fromYaml -}}
{{- if gt (len .) 4 }}{{ range $label, $value := index . 4 }}{{ $_ := set $labels $label $value }}{{ end }}{{ end -}}
name: {{ index . 2 }}
labels: {{- toYaml $labels | nindent 2 }}
{{- with $annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* An image of another's under global.imageRegistry, which takes the place of the registry that is named. Takes (list $ image). */}}
{{- define "sfumato.otherImage" -}}
{{- $registry := (index . 0).Values.global | default dict | dig "imageRegistry" "" -}}
{{- $image := index . 1 -}}
{{- if $registry -}}
{{- $parts := splitList "/" $image -}}
{{- if and (gt (len $parts) 1) (regexMatch "[.:]|^localhost$" (first $parts)) }}{{ $image = rest $parts | join "/" }}{{ end -}}
{{- $image = printf "%s/%s" $registry $image -}}
{{- end -}}
{{- $image -}}
{{- end }}

{{/* The image of one of docker/'s deployables. Takes (list $ deployable). */}}
{{- define "sfumato.image" -}}
{{- $root := index . 0 }}{{ $deployable := index . 1 }}{{ $image := $root.Values.image -}}
{{- $registry := $root.Values.global | default dict | dig "imageRegistry" "" | default $image.registry -}}
{{- $digest := dig $deployable "" ($image.digests | default dict) -}}
{{- if $registry }}{{ $registry }}/{{ end }}{{ $image.repository }}/{{ $deployable }}
{{- if $digest }}@{{ $digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* The services that answer gRPC: ports, and whether each does tasks of the bus. */}}
{{- define "sfumato.services" -}}
generator: {port: 7101, tasks: true}
grounding: {port: 7102, tasks: true}
scoring: {port: 7103, tasks: true}
trainer: {port: 7104, tasks: true}
registry: {port: 7105, tasks: false}
orchestrator: {port: 7106, tasks: false}
{{- end }}

{{/* The values of joint trainings. Each has its default here too: values of chart 0.1.0 have none of them. */}}
{{- define "sfumato.joint" -}}
{{- $joint := dict "pods" 1 "gpus" 0 "threads" 1 "env" dict "resources" .Values.trainer.resources -}}
{{- range $name, $value := .Values.trainer.joint }}{{ $_ := set $joint $name $value }}{{ end -}}
{{ toYaml $joint }}
{{- end }}

{{/* Whether a joint training is a Job that the orchestrator starts: it is one of several processes, one on each GPU or one in each pod. */}}
{{- define "sfumato.jointJobs" -}}
{{- $joint := include "sfumato.joint" . | fromYaml -}}
{{- if gt (mul $joint.pods (max 1 $joint.gpus) | int) 1 }}true{{ end }}
{{- end }}

{{/* The queues of the bus that a service's workers take tasks from. */}}
{{- define "sfumato.queues" -}}
generator: [generator]
grounding: [grounding]
scoring: [scoring]
trainer: [trainer, joint]
{{- end }}

{{/* Where the bus is, and on how many of its servers streams are kept. */}}
{{- define "sfumato.busUrl" -}}
{{- if .Values.bus.external.url }}{{ .Values.bus.external.url }}{{ else -}}
{{- $scheme := ternary "tls" "nats" .Values.tls.enabled -}}
{{- $name := include "sfumato.name" . -}}
{{- $urls := list -}}
{{- range $index := until (int .Values.nats.replicas) -}}
{{- $urls = append $urls (printf "%s://%s-nats-%d.%s-nats-peers.%s.svc:4222" $scheme $name $index $name $.Release.Namespace) -}}
{{- end -}}
{{ join "," $urls }}
{{- end }}
{{- end }}

{{- define "sfumato.busReplicas" -}}
{{- if .Values.bus.external.url }}{{ .Values.bus.external.replicas }}{{ else if ge (int .Values.nats.replicas) 3 }}3{{ else }}1{{ end }}
{{- end }}

{{- define "sfumato.secret.auth" -}}{{ .Values.secrets.auth | default (printf "%s-auth" (include "sfumato.name" .)) }}{{- end }}
{{- define "sfumato.secret.bus" -}}{{ .Values.secrets.bus | default (printf "%s-bus" (include "sfumato.name" .)) }}{{- end }}
{{- define "sfumato.secret.tls" -}}
{{- index (index . 0).Values.tls.secrets (index . 1) | default (printf "%s-%s-tls" (include "sfumato.name" (index . 0)) (index . 1)) }}
{{- end }}

{{- define "sfumato.artifactsUrl" -}}{{ .Values.artifacts.url | default "/var/lib/sfumato/artifacts" }}{{- end }}
{{- define "sfumato.artifactsClaim" -}}{{ .Values.artifacts.volume.existingClaim | default (printf "%s-artifacts" (include "sfumato.name" .)) }}{{- end }}
{{- define "sfumato.modelsClaim" -}}{{ .Values.models.volume.existingClaim | default (printf "%s-models" (include "sfumato.name" .)) }}{{- end }}

{{/* Where the registry's own database lies: in a file, or as the secret says. */}}
{{- define "sfumato.registryIsFile" -}}{{ if not .Values.registry.database.secret }}true{{ end }}{{- end }}

{{/* The environment that all of our programs share. Takes (list $ component). */}}
{{- define "sfumato.env" -}}
{{- $root := index . 0 }}{{ $component := index . 1 -}}
- {name: SFUMATO_SECRETS, value: /run/secrets/sfumato}
- {name: SFUMATO_RUNS, value: /var/lib/sfumato}
- {name: SFUMATO_ARTIFACTS, value: {{ include "sfumato.artifactsUrl" $root | quote }}}
- {name: SFUMATO_LOG_FORMAT, value: json}
- {name: SFUMATO_LOG_LEVEL, value: {{ $root.Values.observability.logLevel }}}
{{- with $root.Values.observability.otlp }}
- {name: SFUMATO_TELEMETRY_OTLP, value: {{ . | quote }}}
{{- end }}
{{- with $root.Values.artifacts.region }}
- {name: AWS_REGION, value: {{ . | quote }}}
{{- end }}
{{- with $root.Values.artifacts.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ . | quote }}}
{{- if hasPrefix "http://" . }}
- {name: AWS_ALLOW_HTTP, value: "true"}
{{- end }}
{{- end }}
- {name: HF_HOME, value: /var/cache/models}
- {name: HF_HUB_OFFLINE, value: "1"}
- {name: HOME, value: /tmp}
- {name: MPLCONFIGDIR, value: /tmp/matplotlib}
- {name: TOKENIZERS_PARALLELISM, value: "false"}
- {name: TQDM_DISABLE, value: "1"}
{{- if $root.Values.tls.enabled }}
- {name: SFUMATO_CLIENT_CA, value: /run/tls/ca.crt}
- {name: SFUMATO_CLIENT_CERTIFICATE, value: /run/tls/tls.crt}
- {name: SFUMATO_CLIENT_KEY, value: /run/tls/tls.key}
{{- end }}
{{- end }}

{{/* Files of secrets that all of our programs are given. Takes (list $ component). */}}
{{- define "sfumato.secretSources" -}}
{{- $root := index . 0 }}{{ $component := index . 1 -}}
- secret:
    name: {{ include "sfumato.secret.auth" $root }}
    items:
      - {key: grpc-token, path: SFUMATO_GRPC_TOKEN}
      - {key: grpc-token, path: SFUMATO_CLIENT_TOKEN}
{{- with $root.Values.artifacts.keysSecret }}
- secret:
    name: {{ . }}
    items:
      - {key: AWS_ACCESS_KEY_ID, path: AWS_ACCESS_KEY_ID}
      - {key: AWS_SECRET_ACCESS_KEY, path: AWS_SECRET_ACCESS_KEY}
{{- end }}
{{- end }}

{{/* Volumes that all of our programs share; secrets beyond the usual are added by the caller. Takes (list $ component sources). */}}
{{- define "sfumato.volumes" -}}
{{- $root := index . 0 }}{{ $component := index . 1 -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources: {{- include "sfumato.secretSources" (list $root $component) | nindent 6 }}
    {{- with index . 2 }}
      {{- . | nindent 6 }}
    {{- end }}
- {name: tmp, emptyDir: {sizeLimit: {{ $root.Values.scratch }}}}
- {name: state, emptyDir: {sizeLimit: {{ $root.Values.scratch }}}}
{{- if not $root.Values.artifacts.url }}
- {name: artifacts, persistentVolumeClaim: {claimName: {{ include "sfumato.artifactsClaim" $root }}}}
{{- end }}
{{- if $root.Values.models.volume.enabled }}
- {name: models, persistentVolumeClaim: {claimName: {{ include "sfumato.modelsClaim" $root }}, readOnly: {{ ne $component "fetch" }}}}
{{- end }}
{{- if $root.Values.tls.enabled }}
- name: tls
  secret: {secretName: {{ include "sfumato.secret.tls" (list $root $component) }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "sfumato.mounts" -}}
{{- $root := index . 0 }}{{ $component := index . 1 -}}
- {name: secrets, mountPath: /run/secrets/sfumato, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: state, mountPath: /var/lib/sfumato}
{{- if not $root.Values.artifacts.url }}
- {name: artifacts, mountPath: /var/lib/sfumato/artifacts}
{{- end }}
{{- if $root.Values.models.volume.enabled }}
- {name: models, mountPath: /var/cache/models, readOnly: {{ ne $component "fetch" }}}
{{- end }}
{{- if $root.Values.tls.enabled }}
- {name: tls, mountPath: /run/tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "sfumato.vlmUrl" -}}
{{ if eq .Values.vlm.kind "external" }}{{ .Values.vlm.external.url }}{{ else }}http{{ ternary "s" "" .Values.tls.enabled }}://{{ include "sfumato.name" . }}-vlm.{{ .Release.Namespace }}.svc:8000{{ end }}
{{- end }}

{{/* Files of secrets that one component is given and no other. Takes (list $ component whether it is on the bus). */}}
{{- define "sfumato.ownSecrets" -}}
{{- $root := index . 0 }}{{ $component := index . 1 -}}
{{- if index . 2 }}
- secret:
    name: {{ include "sfumato.secret.bus" $root }}
    items:
      - {key: {{ $component }}, path: SFUMATO_BUS_PASSWORD}
{{- end }}
{{- if and (has $component (list "registry" "migrate")) $root.Values.registry.database.secret }}
- secret:
    name: {{ $root.Values.registry.database.secret }}
    items:
      - {key: {{ $root.Values.registry.database.key }}, path: SFUMATO_REGISTRY_URL}
{{- end }}
{{- if and (eq $component "grounding") (eq $root.Values.vlm.kind "external") $root.Values.vlm.external.keySecret }}
- secret:
    name: {{ $root.Values.vlm.external.keySecret }}
    items:
      - {key: key, path: SFUMATO_VLM_API_KEY}
{{- end }}
{{- if and (eq $component "inference") $root.Values.inference.keysSecret }}
- secret:
    name: {{ $root.Values.inference.keysSecret }}
    items:
      - {key: keys.json, path: keys.json}
{{- end }}
{{- end }}

{{/*
A component's Service. Takes a dict: root, component, name (for what comes after the component's), ports, metrics (ports that stay within
the cluster when the type of the Service opens it to others). The values' service gives type, annotations and what else Kubernetes knows.
*/}}
{{- define "sfumato.service" -}}
{{- $root := .root }}{{ $component := .component -}}
{{- $name := printf "%s-%s" (include "sfumato.name" $root) $component -}}
{{- $service := (include "sfumato.own" (list $root $component) | fromYaml).service | default dict -}}
{{- $type := $service.type | default "ClusterIP" -}}
{{- $open := ne $type "ClusterIP" -}}
{{- $ports := list -}}
{{- range $index, $port := .ports -}}
{{- if and $open (eq $index 0) $service.nodePort }}{{ $port = merge (dict "nodePort" (int $service.nodePort)) $port }}{{ end -}}
{{- $ports = append $ports $port -}}
{{- end -}}
{{- if not $open }}{{ $ports = concat $ports (.metrics | default list) }}{{ end }}
---
apiVersion: v1
kind: Service
metadata: {{- include "sfumato.metadata" (list $root $component $name ($service.annotations | default dict) ($service.labels | default dict)) | nindent 2 }}
spec:
  {{- if $open }}
  type: {{ $type }}
  {{- end }}
  {{- with omit $service "type" "annotations" "labels" "nodePort" }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  selector: {{- include "sfumato.selector" (list $root $component) | nindent 4 }}
  ports: {{- toYaml $ports | nindent 4 }}
{{- if and $open .metrics }}
---
# The Service above is open to others; this one is not.
apiVersion: v1
kind: Service
metadata: {{- include "sfumato.metadata" (list $root $component (printf "%s-metrics" $name)) | nindent 2 }}
spec:
  selector: {{- include "sfumato.selector" (list $root $component) | nindent 4 }}
  ports: {{- toYaml .metrics | nindent 4 }}
{{- end }}
{{- end }}

{{/* A disruption budget: one pod at a time. Takes (list $ component). */}}
{{- define "sfumato.budget" }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "sfumato.metadata" (list (index . 0) (index . 1) (printf "%s-%s" (include "sfumato.name" (index . 0)) (index . 1))) | nindent 2 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "sfumato.selector" . | nindent 6 }}
{{- end }}
