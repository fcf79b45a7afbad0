{{- define "secateur.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- define "secateur.labels" -}}
app.kubernetes.io/name: secateur
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
