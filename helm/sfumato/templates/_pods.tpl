{{/*
Every pod of the release is made by sfumato.podTemplate, of what its component writes and of the settings that all pods may be given:
those at the top of the values, and a component's own of the same name.
*/}}

{{/* The values of a component. Takes (list $ component). */}}
{{- define "sfumato.own" -}}
{{- $values := (index . 0).Values }}{{ $component := index . 1 -}}
{{- $own := dict -}}
{{- if eq $component "joint" }}{{ $own = include "sfumato.joint" (index . 0) | fromYaml }}
{{- else if eq $component "test" }}{{ $own = omit $values.trial "timeout" }}
{{- else if has $component (list "migrate" "fetch" "resize") }}{{ $own = dig $component dict ($values.jobs | default dict) }}
{{- else }}{{ $own = index $values $component }}{{ end -}}
{{- toYaml $own }}
{{- end }}

{{/*
The settings of a component's pod: those of all pods, and the component's own over them. Its scalars and lists replace the general ones,
maps are merged, and lists of additions (extra...) are concatenated. A job without a nodeSelector or tolerations of its own has those of the
component whose image it runs. Takes (list $ component).
*/}}
{{- define "sfumato.settings" -}}
{{- $values := (index . 0).Values }}{{ $component := index . 1 -}}
{{- $own := include "sfumato.own" . | fromYaml -}}
{{- $kin := dict "migrate" "registry" "fetch" "generator" "test" "orchestrator" "resize" "nats" -}}
{{- with index $kin $component -}}
{{- range $name, $value := pick (index $values .) "nodeSelector" "tolerations" -}}
{{- if not (hasKey $own $name) }}{{ $_ := set $own $name $value }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $settings := deepCopy $own -}}
{{- range $name := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" "schedulerName" "hostAliases" "dnsPolicy" "dnsConfig" "terminationGracePeriodSeconds" "lifecycle" -}}
{{- if and (not (hasKey $own $name)) (hasKey $values $name) }}{{ $_ := set $settings $name (index $values $name) }}{{ end -}}
{{- end -}}
{{- range $name := list "podLabels" "podAnnotations" -}}
{{- $merged := dict -}}
{{- range $map := list (index $values $name) (index $own $name) -}}
{{- range $key, $value := $map }}{{ $_ := set $merged $key $value }}{{ end -}}
{{- end -}}
{{- $_ := set $settings $name $merged -}}
{{- end -}}
{{- range $name := list "extraEnv" "extraEnvFrom" "extraVolumes" "extraVolumeMounts" -}}
{{- $_ := set $settings $name (concat (index $values $name | default list) (index $own $name | default list)) -}}
{{- end -}}
{{- range $name := list "podSecurityContext" "containerSecurityContext" -}}
{{- $_ := set $settings $name (include "sfumato.securityContext" (list $ $name (index $own $name | default dict)) | fromYaml) -}}
{{- end -}}
{{- toYaml $settings }}
{{- end }}

{{/*
A security context: that of the values (values of chart 0.1.0 have none: then the standard `restricted`), and a component's own over it. A
null removes a field. On OpenShift the ids are removed: each namespace has its own range. Takes (list (list $ component) name own).
*/}}
{{- define "sfumato.securityContext" -}}
{{- $root := index . 0 | first }}{{ $name := index . 1 -}}
{{- $context := include (printf "sfumato.%s" $name) $root | fromYaml -}}
{{- /* Values of chart 0.1.0 have neither this nor `jobs`: what is set over them is laid over the standard. */}}
{{- if hasKey $root.Values "jobs" }}{{ $context = dict }}{{ end -}}
{{- range $field, $value := index $root.Values $name }}{{ $_ := set $context $field $value }}{{ end -}}
{{- range $field, $value := index . 2 }}{{ $_ := set $context $field $value }}{{ end -}}
{{- $adapt := $root.Values.global | default dict | dig "compatibility" "openshift" "adaptSecurityContext" "auto" -}}
{{- if or (eq $adapt "force") (and (eq $adapt "auto") ($root.Capabilities.APIVersions.Has "security.openshift.io/v1")) -}}
{{- $context = omit $context "runAsUser" "runAsGroup" "fsGroup" "fsGroupChangePolicy" -}}
{{- end -}}
{{- range $field, $value := $context }}{{ if kindIs "invalid" $value }}{{ $_ := unset $context $field }}{{ end }}{{ end -}}
{{- toYaml $context }}
{{- end }}

{{- define "sfumato.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "sfumato.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* A dict as YAML, with the named keys first and in their order, and without what is empty. Takes (list dict keys). */}}
{{- define "sfumato.ordered" -}}
{{- $dict := index . 0 -}}
{{- range $key := concat (index . 1) (without (keys $dict | sortAlpha) "" | uniq) | uniq -}}
{{- with index $dict $key }}
{{ dict $key . | toYaml }}
{{- end }}
{{- end }}
{{- end }}

{{/*
The template of a pod: metadata and spec. Takes a dict: root, component, pod (YAML: the one container, volumes and what else is its own) and annotations.
*/}}
{{- define "sfumato.podTemplate" -}}
{{- $root := .root }}{{ $component := .component -}}
{{- $settings := include "sfumato.settings" (list $root $component) | fromYaml -}}
{{- $pod := .pod | fromYaml -}}
{{- if hasKey $pod "Error" }}{{ fail (printf "%s: %s" $component $pod.Error) }}{{ end -}}
{{- $labels := include "sfumato.labels" (list $root $component) | fromYaml -}}
{{- range $label, $value := $settings.podLabels }}{{ $_ := set $labels $label $value }}{{ end -}}
{{- $annotations := $settings.podAnnotations -}}
{{- range $annotation, $value := .annotations }}{{ $_ := set $annotations $annotation $value }}{{ end -}}
{{- $_ := set $pod "serviceAccountName" (include "sfumato.serviceAccountName" (list $root $component)) -}}
{{- $_ := set $pod "securityContext" $settings.podSecurityContext -}}
{{- $_ := set $pod "imagePullSecrets" (include "sfumato.pullSecrets" $root | fromYamlArray) -}}
{{- range $name := list "priorityClassName" "runtimeClassName" "schedulerName" "nodeSelector" "tolerations" "affinity" "hostAliases" "dnsPolicy" "dnsConfig" "terminationGracePeriodSeconds" -}}
{{- with index $settings $name }}{{ $_ := set $pod $name . }}{{ end -}}
{{- end -}}
{{- $spread := list -}}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" -}}
{{- $spread = append $spread (dict "maxSkew" 1 "topologyKey" . "whenUnsatisfiable" "ScheduleAnyway") -}}
{{- end -}}
{{- if hasKey $settings "topologySpreadConstraints" }}{{ $spread = $settings.topologySpreadConstraints | default list }}{{ end -}}
{{- $selector := dict "matchLabels" (include "sfumato.selector" (list $root $component) | fromYaml) -}}
{{- $constraints := list -}}
{{- range $spread }}{{ $constraints = append $constraints (merge (dict) . (dict "labelSelector" $selector)) }}{{ end -}}
{{- $_ := set $pod "topologySpreadConstraints" $constraints -}}
{{- $_ := set $pod "volumes" (include "sfumato.overlaid" (list "name" $pod.volumes $settings.extraVolumes) | fromYamlArray) -}}
{{- $container := first $pod.containers -}}
{{- $_ := set $container "imagePullPolicy" ($settings.imagePullPolicy | default $root.Values.image.pullPolicy) -}}
{{- $env := list -}}
{{- range $variable, $value := $settings.env }}{{ $env = append $env (dict "name" $variable "value" $value) }}{{ end -}}
{{- $_ := set $container "env" (include "sfumato.overlaid" (list "name" $container.env $env $settings.extraEnv) | fromYamlArray) -}}
{{- $_ := set $container "envFrom" $settings.extraEnvFrom -}}
{{- $_ := set $container "volumeMounts" (include "sfumato.overlaid" (list "mountPath" $container.volumeMounts $settings.extraVolumeMounts) | fromYamlArray) -}}
{{- $_ := set $container "securityContext" $settings.containerSecurityContext -}}
{{- with $settings.lifecycle }}{{ $_ := set $container "lifecycle" . }}{{ end -}}
{{- with $settings.resources -}}
{{- $resources := deepCopy . -}}
{{- if and (gt (int $settings.gpus) 0) (or (ne $component "vlm") (eq $root.Values.vlm.kind "gpu")) -}}
{{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" (int $settings.gpus)) (.limits | default dict)) -}}
{{- end -}}
{{- $_ := set $container "resources" $resources -}}
{{- end -}}
metadata:
  labels: {{- toYaml $labels | nindent 4 }}
  {{- with $annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- /* Only two call Kubernetes' API: the orchestrator where it starts Jobs, and the job that enlarges volumes. */}}
  automountServiceAccountToken: {{ or (eq $component "resize") (and (eq $component "orchestrator") (not (empty (include "sfumato.jointJobs" $root)))) }}
  enableServiceLinks: false
  {{- include "sfumato.ordered" (list (omit $pod "containers" "volumes") (list "serviceAccountName" "securityContext" "imagePullSecrets" "priorityClassName" "runtimeClassName" "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "subdomain" "restartPolicy" "terminationGracePeriodSeconds")) | trim | nindent 2 }}
  containers:
    - {{ include "sfumato.ordered" (list $container (list "name" "image" "imagePullPolicy" "command" "args" "ports" "env" "envFrom" "startupProbe" "readinessProbe" "livenessProbe" "lifecycle" "resources" "securityContext" "volumeMounts")) | trim | nindent 6 | trim }}
  volumes: {{- toYaml $pod.volumes | nindent 4 }}
{{- end }}

{{/* Lists of dicts as one: what has the key of an earlier entry takes its place. Takes (list key lists...). */}}
{{- define "sfumato.overlaid" -}}
{{- $key := first . -}}
{{- $entries := dict }}{{ $order := list -}}
{{- range $entry := rest . | compact | include "sfumato.joined" | fromYamlArray -}}
{{- $name := index $entry $key -}}
{{- if not (hasKey $entries $name) }}{{ $order = append $order $name }}{{ end -}}
{{- $_ := set $entries $name $entry -}}
{{- end -}}
{{- $overlaid := list -}}
{{- range $order }}{{ $overlaid = append $overlaid (index $entries .) }}{{ end -}}
{{- toYaml $overlaid }}
{{- end }}

{{- define "sfumato.joined" -}}
{{- $joined := list -}}
{{- range . }}{{ range . }}{{ $joined = append $joined . }}{{ end }}{{ end -}}
{{- toYaml $joined }}
{{- end }}

{{- define "sfumato.pullSecrets" -}}
{{- $names := list -}}
{{- range concat (.Values.global | default dict | dig "imagePullSecrets" list | default list) (.Values.image.pullSecrets | default list) -}}
{{- $names = append $names (kindIs "map" . | ternary (dict "name" (get (kindIs "map" . | ternary . dict) "name")) (dict "name" .)) -}}
{{- end -}}
{{- toYaml ($names | uniq) }}
{{- end }}

{{/* Seconds from the word to end until a pod is killed: out of the endpoints, the grace to finish or hand back, and the rest. */}}
{{- define "sfumato.terminationGrace" -}}
{{ add .Values.drain.endpoints .Values.drain.grace 30 }}
{{- end }}

{{/* Nothing where a pod need not wait until it is out of the endpoints: a sleep of 0 seconds is refused by Kubernetes before 1.34. */}}
{{- define "sfumato.lifecycle" -}}
{{- if gt (int .Values.drain.endpoints) 0 -}}
lifecycle:
  preStop:
    sleep: {seconds: {{ .Values.drain.endpoints }}}
{{- end }}
{{- end }}

{{/* Whether the chart makes a component's account, and the account's name. Takes (list $ component). */}}
{{- define "sfumato.makesServiceAccount" -}}
{{- $own := (include "sfumato.own" . | fromYaml).serviceAccount | default dict -}}
{{- $all := (index . 0).Values.serviceAccounts -}}
{{- $create := true -}}
{{- if hasKey $all "create" }}{{ $create = $all.create }}{{ end -}}
{{- if hasKey $own "create" }}{{ $create = $own.create }}{{ end -}}
{{- if $create }}true{{ end }}
{{- end }}

{{- define "sfumato.serviceAccountName" -}}
{{- $own := (include "sfumato.own" . | fromYaml).serviceAccount | default dict -}}
{{- $made := printf "%s-%s" (include "sfumato.name" (index . 0)) (index . 1) -}}
{{- $own.name | default (ternary $made ((index . 0).Values.serviceAccounts.name | default "default") (not (empty (include "sfumato.makesServiceAccount" .)))) }}
{{- end }}

{{/* A component's account, which may do nothing. Takes (list $ component annotations); of hooks the last are theirs. */}}
{{- define "sfumato.serviceAccount" -}}
{{- $root := index . 0 }}{{ $component := index . 1 -}}
{{- $own := include "sfumato.own" (list $root $component) | fromYaml -}}
{{- $annotations := dict -}}
{{- /* A cloud's role is for those that reach the bucket. */}}
{{- if has $component (list "generator" "grounding" "scoring" "trainer" "registry" "orchestrator" "inference" "joint") -}}
{{- range $name, $value := $root.Values.serviceAccounts.annotations }}{{ $_ := set $annotations $name $value }}{{ end -}}
{{- end -}}
{{- range $name, $value := ($own.serviceAccount | default dict).annotations }}{{ $_ := set $annotations $name $value }}{{ end -}}
{{- if gt (len .) 2 }}{{ range $name, $value := index . 2 }}{{ $_ := set $annotations $name $value }}{{ end }}{{ end -}}
{{- if include "sfumato.makesServiceAccount" (list $root $component) }}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{- include "sfumato.metadata" (list $root $component (include "sfumato.serviceAccountName" (list $root $component)) $annotations) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
{{- end }}
