{{/* Names */}}

{{- define "postern.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "postern.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "postern.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "postern.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* What every selector has; the parts of a selector can't change in an upgrade. */}}
{{- define "postern.selector" -}}
app.kubernetes.io/name: {{ include "postern.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "postern.labels" -}}
{{ include "postern.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Components: what has a Deployment. */}}

{{- define "postern.components" -}}
{{- if eq .Values.mode "split" -}}
proxy authorize authenticate databroker
{{- else -}}
all-in-one
{{- end -}}
{{- end }}

{{/* (root, component): its section of the values over `common`, as YAML. */}}
{{- define "postern.component" -}}
{{- $own := index .root.Values (eq .component "all-in-one" | ternary "allInOne" .component) -}}
{{- toYaml (mergeOverwrite (deepCopy .root.Values.common) (deepCopy $own)) -}}
{{- end }}

{{/* (root, component) */}}
{{- define "postern.componentName" -}}
{{- printf "%s-%s" (include "postern.fullname" .root) .component -}}
{{- end }}

{{/* (root, component) */}}
{{- define "postern.componentSelector" -}}
{{ include "postern.selector" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* (root, component) */}}
{{- define "postern.componentLabels" -}}
{{ include "postern.labels" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* What faces browsers. */}}
{{- define "postern.front" -}}
{{- eq .Values.mode "split" | ternary "proxy" "all-in-one" -}}
{{- end }}

{{/* (root, component): the name that the others reach it by; it has the address of every pod. */}}
{{- define "postern.host" -}}
{{- printf "%s.%s.svc.%s" (include "postern.componentName" .) .root.Release.Namespace .root.Values.clusterDomain -}}
{{- end }}

{{- define "postern.scheme" -}}
{{- eq .Values.internalTls.source "none" | ternary "http" "https" -}}
{{- end }}

{{/* (root, component) */}}
{{- define "postern.serviceAccountName" -}}
{{- $own := include "postern.component" . | fromYaml -}}
{{- if $own.serviceAccount.create -}}
{{- default (include "postern.componentName" .) $own.serviceAccount.name -}}
{{- else -}}
{{- default "default" $own.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{/* (root, image) */}}
{{- define "postern.image" -}}
{{- $values := .root.Values.image -}}
{{- with index $values.digests .image -}}
{{- printf "%s/%s@%s" $values.registry $.image . -}}
{{- else -}}
{{- printf "%s/%s:%s" $values.registry .image (default .root.Chart.AppVersion $values.tag) -}}
{{- end -}}
{{- end }}

{{/* Where secrets come from */}}

{{- define "postern.configMapName" -}}
{{- default (include "postern.fullname" .) .Values.existingConfigMap -}}
{{- end }}

{{- define "postern.secretName" -}}
{{- default (printf "%s-secrets" (include "postern.fullname" .)) .Values.secrets.existingSecret -}}
{{- end }}

{{/* Empty where nothing is encrypted inside. */}}
{{- define "postern.internalTlsSecretName" -}}
{{- if and (eq .Values.mode "split") (ne .Values.internalTls.source "none") -}}
{{- if eq .Values.internalTls.source "secret" -}}
{{- .Values.internalTls.existingSecret -}}
{{- else -}}
{{- printf "%s-internal-tls" (include "postern.fullname" .) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Names that the internal certificate must hold. */}}
{{- define "postern.internalHosts" -}}
{{- range $component := list "authorize" "authenticate" "databroker" }}
- {{ include "postern.host" (dict "root" $ "component" $component) }}
{{- end }}
{{- end }}

{{/* A YAML list of the Secrets with certificates that browsers see. */}}
{{- define "postern.certificateSecrets" -}}
{{- range .Values.certificates.existingSecrets }}
- {{ . }}
{{- end }}
{{- if .Values.certificates.certManager.enabled }}
- {{ include "postern.fullname" . }}-tls
{{- end }}
{{- end }}

{{/* Whether the Job that makes Secrets has anything to do. */}}
{{- define "postern.makesSecrets" -}}
{{- if or (not .Values.secrets.existingSecret) (and (eq .Values.mode "split") (eq .Values.internalTls.source "generated")) -}}
true
{{- end -}}
{{- end }}

{{/* Keys of the configuration that a running process does not take over; those that the chart sets
     itself are in the environment. */}}
{{- define "postern.restartKeys" -}}
{{- pick .Values.config "insecure_server" "metrics_certificate" "metrics_certificate_file" | toJson -}}
{{- end }}

{{/* A duration such as 1m30s in seconds, rounded up. */}}
{{- define "postern.seconds" -}}
{{- $text := regexReplaceAll "[0-9.]+(n|u|µ|μ|m)s" (toString .) "" -}}
{{- $below := ne $text (toString .) | ternary 1 0 -}}
{{- $hours := regexFind "[0-9.]+h" $text | trimSuffix "h" | default "0" | float64 -}}
{{- $minutes := regexFind "[0-9.]+m" $text | trimSuffix "m" | default "0" | float64 -}}
{{- $seconds := regexFind "[0-9.]+s" $text | trimSuffix "s" | default "0" | float64 -}}
{{- add (addf (mulf 3600 $hours) (mulf 60 $minutes) $seconds | ceil | int) $below -}}
{{- end }}

{{/* The longest that a drain takes: the delay, 2 s until idle connections are closed, requests in flight,
     3 s for streams and tasks. See crates/common/src/lifecycle/drain.rs. */}}
{{- define "postern.drainSeconds" -}}
{{- $delay := include "postern.seconds" (default "5s" .Values.config.drain_delay) | int -}}
{{- $timeout := include "postern.seconds" (default "30s" .Values.config.drain_timeout) | int -}}
{{- add $delay 2 $timeout 3 -}}
{{- end }}
