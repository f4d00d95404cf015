{{- /* What several templates share: names, labels, what a pod may do. */ -}}

{{- define "trimtab.labels" -}}
app.kubernetes.io/name: trimtab
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{- define "trimtab.selector" -}}
app.kubernetes.io/name: trimtab
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "trimtab.namespace" -}}
{{ eq .part "agent" | ternary .root.Values.jobs.namespace .root.Release.Namespace }}
{{- end -}}

{{- define "trimtab.host" -}}
{{ .root.Release.Name }}-{{ .part }}.{{ include "trimtab.namespace" . }}.svc
{{- end -}}

{{- define "trimtab.api" -}}
https://{{ include "trimtab.host" (dict "root" . "part" "server") }}:8440
{{- end -}}

{{- /* Every name that a part is reached by, comma separated: they stand in its certificate. */ -}}
{{- define "trimtab.names" -}}
{{- $base := printf "%s-%s" .root.Release.Name .part -}}
{{- $space := include "trimtab.namespace" . -}}
{{- $names := list $base (printf "%s.%s" $base $space) (include "trimtab.host" .) "localhost" -}}
{{- concat $names ((index .root.Values .part).hosts | default list) | uniq | join "," -}}
{{- end -}}

{{- /* Changes when a part's certificate has to: its pods then start anew. */ -}}
{{- define "trimtab.papers" -}}
{{ printf "%s %s %s" (include "trimtab.names" .) .root.Values.tls.certificates .root.Values.tls.caSecret | sha256sum | trunc 16 }}
{{- end -}}

{{- /* Image, and what a container may do: nothing but its work. */ -}}
{{- define "trimtab.container" -}}
image: {{ .image }}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- define "trimtab.pod" -}}
enableServiceLinks: false  # a Service named trimtab would set TRIMTAB_PORT
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}
