{{/* What everything is called: the release's name, with the chart's where that is not in it. */}}
{{- define "sfumato.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* What selects a component's pods. Takes (list $ "component"). */}}
{{- define "sfumato.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "sfumato.labels" -}}
{{ include "sfumato.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sfumato
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
{{- end }}

{{/* The image of one of docker/'s deployables. */}}
{{- define "sfumato.image" -}}
{{- $image := (index . 0).Values.image -}}
{{- if $image.registry }}{{ $image.registry }}/{{ end }}{{ $image.repository }}/{{ index . 1 }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}
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

{{/* Processes of a joint training: one on each GPU, or one in each pod. More than one are a Job that the orchestrator starts. */}}
{{- define "sfumato.jointProcesses" -}}{{ mul .Values.trainer.joint.pods (max 1 .Values.trainer.joint.gpus) }}{{- end }}
{{- define "sfumato.jointJobs" -}}{{ if gt (int (include "sfumato.jointProcesses" .)) 1 }}true{{ end }}{{- end }}

{{/* The queues of the bus that a service's workers take tasks from. */}}
{{- define "sfumato.queues" -}}
generator: [generator]
grounding: [grounding]
scoring: [scoring]
trainer: [trainer, joint]
{{- end }}

{{- define "sfumato.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "sfumato.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The beginning of every pod's spec. Takes (list $ component values). */}}
{{- define "sfumato.pod" -}}
{{- $root := index . 0 }}{{ $component := index . 1 }}{{ $values := index . 2 -}}
serviceAccountName: {{ include "sfumato.name" $root }}-{{ $component }}
{{- /* One alone speaks to Kubernetes, and only where it has Jobs to start. */}}
automountServiceAccountToken: {{ and (eq $component "orchestrator") (not (empty (include "sfumato.jointJobs" $root))) }}
enableServiceLinks: false
securityContext: {{- include "sfumato.podSecurity" $root | nindent 2 }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "sfumato.selector" (list $root $component) | nindent 8 }}
  {{- end }}
{{- end }}

{{/* Seconds from the word to end until a pod is killed: out of the endpoints, the grace to finish or hand back, and the rest. */}}
{{- define "sfumato.terminationGrace" -}}
{{ add .Values.drain.endpoints .Values.drain.grace 30 }}
{{- end }}

{{- define "sfumato.preStop" -}}
preStop:
  sleep: {seconds: {{ .Values.drain.endpoints }}}
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

{{/* Requests and limits, with the GPUs that a component is given. */}}
{{- define "sfumato.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if gt (int (.gpus | default 0)) 0 -}}
{{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" (int .gpus)) ($resources.limits | default dict)) -}}
{{- end -}}
{{- toYaml $resources }}
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
