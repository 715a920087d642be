{{/*
Who may speak to whom within the release: the one table from which both ends of every flow are written. What is not in it, and not
named under networkPolicy in the values, is refused.
*/}}
{{- define "sfumato.flows" -}}
{{- $joint := ternary (list "joint") list (not (empty (include "sfumato.jointJobs" .))) -}}
flows:
  {{- if not .Values.bus.external.url }}
  {{- range concat (list "generator" "grounding" "scoring" "trainer" "orchestrator") $joint }}
  - {from: {{ . }}, to: nats, port: 4222}
  {{- end }}
  - {from: nats, to: nats, port: 6222}
  {{- end }}
  - {from: orchestrator, to: registry, port: 7105}
  {{- if .Values.inference.enabled }}
  - {from: inference, to: registry, port: 7105}
  - {from: inference, to: scoring, port: 7103}
  {{- end }}
  {{- if has .Values.vlm.kind (list "gpu" "cpu") }}
  - {from: grounding, to: vlm, port: 8000}
  {{- end }}
  {{- range $joint }}
  - {from: joint, to: joint, port: 1, last: 65535}  # they find each other at one, and then talk over ports of their choice
  {{- end }}
  - {from: test, to: orchestrator, port: 7106}
{{- end }}

{{/* What reaches out of the release: (component, peers and ports of the values). */}}
{{- define "sfumato.outside" -}}
{{- $policy := .Values.networkPolicy -}}
{{- $joint := ternary (list "joint") list (not (empty (include "sfumato.jointJobs" .))) -}}
outside:
  {{- if .Values.artifacts.url }}
  {{- range concat (list "generator" "grounding" "scoring" "trainer" "registry" "orchestrator" "inference") $joint }}
  - {from: {{ . }}, to: {{ $policy.egress.artifacts | toJson }}}
  {{- end }}
  {{- end }}
  {{- if .Values.registry.database.secret }}
  - {from: registry, to: {{ $policy.egress.database | toJson }}}
  - {from: migrate, to: {{ $policy.egress.database | toJson }}}
  {{- end }}
  {{- if .Values.bus.external.url }}
  {{- range concat (list "generator" "grounding" "scoring" "trainer" "orchestrator") $joint }}
  - {from: {{ . }}, to: {{ $policy.egress.bus | toJson }}}
  {{- end }}
  {{- end }}
  {{- if eq .Values.vlm.kind "external" }}
  - {from: grounding, to: {{ $policy.egress.vlm | toJson }}}
  {{- end }}
  {{- if .Values.observability.otlp }}
  {{- range concat (list "generator" "grounding" "scoring" "trainer" "registry" "orchestrator" "inference") $joint }}
  - {from: {{ . }}, to: {{ $policy.egress.otlp | toJson }}}
  {{- end }}
  {{- end }}
  {{- if .Values.models.fetch }}
  - {from: fetch, to: {{ $policy.egress.models | toJson }}}
  {{- end }}
{{- $kubernetes := $policy.egress.kubernetes | default (dict "ports" (list (dict "port" 443 "protocol" "TCP") (dict "port" 6443 "protocol" "TCP"))) }}
  {{- range $joint }}
  - {from: orchestrator, to: {{ $kubernetes | toJson }}}
  {{- end }}
  - {from: resize, to: {{ $kubernetes | toJson }}}
{{- end }}
