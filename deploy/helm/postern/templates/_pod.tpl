{{/* (root, component): what the process is told beside its configuration file. Settings that
     need a restart are here, so that a change of one rolls the pods out. */}}
{{- define "postern.env" -}}
{{- $values := .root.Values -}}
{{- $front := eq .component (include "postern.front" .root) -}}
{{- $serves := dict
  "web" (or $front (eq .component "authenticate"))
  "grpc" (has .component (list "authorize" "databroker"))
  "storage" (has .component (list "databroker" "all-in-one"))
-}}
- name: HEALTH_CHECK_ADDR
  value: ":28080"
{{- if $values.metrics.enabled }}
- name: METRICS_ADDRESS
  value: ":9090"
{{- end }}
{{- if $serves.web }}
- name: ADDRESS
  value: ":8443"
{{- end }}
{{- if and $front $values.service.httpPort }}
- name: HTTP_REDIRECT_ADDR
  value: ":8080"
{{- end }}
{{- if $serves.grpc }}
- name: GRPC_ADDRESS
  value: ":5443"
- name: GRPC_INSECURE
  value: {{ eq $values.internalTls.source "none" | quote }}
{{- end }}
{{- if eq $values.mode "split" }}
{{- $scheme := include "postern.scheme" .root }}
- name: AUTHORIZE_SERVICE_URL
  value: {{ $scheme }}://{{ include "postern.host" (dict "root" .root "component" "authorize") }}:5443
- name: DATABROKER_SERVICE_URL
  value: {{ $scheme }}://{{ include "postern.host" (dict "root" .root "component" "databroker") }}:5443
- name: AUTHENTICATE_INTERNAL_SERVICE_URL
  value: {{ $scheme }}://{{ include "postern.host" (dict "root" .root "component" "authenticate") }}:8443
{{- end }}
- name: SHARED_SECRET_FILE
  value: /run/secrets/postern/shared-secret
- name: COOKIE_SECRET_FILE
  value: /run/secrets/postern/cookie-secret
{{- if $values.secrets.signingKey }}
- name: SIGNING_KEY_FILE
  value: /run/secrets/postern/signing-key
{{- end }}
{{- if $values.identityProvider.existingSecret }}
- name: IDP_CLIENT_SECRET_FILE
  value: /run/secrets/identity-provider/client-secret
{{- end }}
- name: DATABROKER_STORAGE_TYPE
  value: {{ $values.storage.type }}
{{- if and $serves.storage (eq $values.storage.type "postgres") }}
- name: DATABROKER_STORAGE_CONNECTION_STRING_FILE
  value: /run/secrets/postgres/connection-string
{{- end }}
{{- if include "postern.internalTlsSecretName" .root }}
- name: CERTIFICATE_AUTHORITY_FILE
  value: /run/secrets/internal-tls/ca.crt
{{- if not $front }}
- name: CERTIFICATE_FILE
  value: /run/secrets/internal-tls/tls.crt
- name: CERTIFICATE_KEY_FILE
  value: /run/secrets/internal-tls/tls.key
{{- end }}
{{- end }}
{{- if eq .component "authenticate" }}
{{- /* Proxies ask it by the scheme of `internalTls`, whatever the front serves to browsers. */}}
- name: INSECURE_SERVER
  value: {{ eq $values.internalTls.source "none" | quote }}
{{- end }}
{{- $certificates := include "postern.certificateSecrets" .root | fromYamlArray }}
{{- if and $front (eq (len $certificates) 1) }}
- name: CERTIFICATE_FILE
  value: /run/secrets/certificates/0/tls.crt
- name: CERTIFICATE_KEY_FILE
  value: /run/secrets/certificates/0/tls.key
{{- end }}
{{- end }}

{{/* (root, component): the file it reads; the one of what faces browsers may list certificates. */}}
{{- define "postern.configFile" -}}
{{- $certificates := include "postern.certificateSecrets" .root | fromYamlArray -}}
{{- if and (eq .component (include "postern.front" .root)) (gt (len $certificates) 1) -}}
/etc/postern/front.yaml
{{- else -}}
/etc/postern/config.yaml
{{- end -}}
{{- end }}

{{/* (root, component). Whole directories are mounted, never a subPath: those never change. */}}
{{- define "postern.volumes" -}}
{{- $values := .root.Values -}}
- name: config
  configMap:
    name: {{ include "postern.configMapName" .root }}
- name: secrets
  secret:
    secretName: {{ include "postern.secretName" .root }}
    defaultMode: 0440
    items:
      - {key: shared-secret, path: shared-secret}
      - {key: cookie-secret, path: cookie-secret}
      {{- with $values.secrets.signingKey }}
      - {key: {{ . }}, path: signing-key}
      {{- end }}
{{- with $values.identityProvider.existingSecret }}
- name: identity-provider
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - {key: {{ $values.identityProvider.key }}, path: client-secret}
{{- end }}
{{- if and (has .component (list "databroker" "all-in-one")) (eq $values.storage.type "postgres") }}
- name: postgres
  secret:
    secretName: {{ $values.storage.postgres.existingSecret }}
    defaultMode: 0440
    items:
      - {key: {{ $values.storage.postgres.key }}, path: connection-string}
{{- end }}
{{- with include "postern.internalTlsSecretName" .root }}
- name: internal-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - {key: ca.crt, path: ca.crt}
      {{- if ne $.component "proxy" }}
      - {key: tls.crt, path: tls.crt}
      - {key: tls.key, path: tls.key}
      {{- end }}
{{- end }}
{{- if eq .component (include "postern.front" .root) }}
{{- range $index, $name := include "postern.certificateSecrets" .root | fromYamlArray }}
- name: certificate-{{ $index }}
  secret:
    secretName: {{ $name }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- end }}

{{/* (root, component) */}}
{{- define "postern.volumeMounts" -}}
{{- $values := .root.Values -}}
- {name: config, mountPath: /etc/postern, readOnly: true}
- {name: secrets, mountPath: /run/secrets/postern, readOnly: true}
{{- if $values.identityProvider.existingSecret }}
- {name: identity-provider, mountPath: /run/secrets/identity-provider, readOnly: true}
{{- end }}
{{- if and (has .component (list "databroker" "all-in-one")) (eq $values.storage.type "postgres") }}
- {name: postgres, mountPath: /run/secrets/postgres, readOnly: true}
{{- end }}
{{- if include "postern.internalTlsSecretName" .root }}
- {name: internal-tls, mountPath: /run/secrets/internal-tls, readOnly: true}
{{- end }}
{{- if eq .component (include "postern.front" .root) }}
{{- range $index, $_ := include "postern.certificateSecrets" .root | fromYamlArray }}
- {name: certificate-{{ $index }}, mountPath: /run/secrets/certificates/{{ $index }}, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{/* (root, component) */}}
{{- define "postern.ports" -}}
{{- $front := eq .component (include "postern.front" .root) -}}
{{- if or $front (eq .component "authenticate") }}
- {name: https, containerPort: 8443}
{{- end }}
{{- if and $front .root.Values.service.httpPort }}
- {name: http, containerPort: 8080}
{{- end }}
{{- if has .component (list "authorize" "databroker") }}
- {name: grpc, containerPort: 5443}
{{- end }}
{{- if .root.Values.metrics.enabled }}
- {name: metrics, containerPort: 9090}
{{- end }}
- {name: health, containerPort: 28080}
{{- end }}
