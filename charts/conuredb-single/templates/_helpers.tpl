{{- define "conuredb.name" -}}
{{- .Values.fullnameOverride | default (printf "%s-conure" .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "conuredb.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}

{{- define "conuredb.selector" -}}
app.kubernetes.io/name: conuredb
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "conuredb.labels" -}}
{{ include "conuredb.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "conuredb.clientUrl" -}}
{{ include "conuredb.scheme" . }}://{{ include "conuredb.name" . }}.{{ .Release.Namespace }}.svc:{{ .Values.service.port }}
{{- end -}}

{{- /* "true" if a front is served, resp, rest or metrics, else nothing. */ -}}
{{- define "conuredb.serves" -}}
{{- if or (get .root.Values .front).enabled (eq .root.Values.profile "kvstore") -}}
true
{{- end -}}
{{- end -}}

{{- /* The engine that the values ask for; nothing: the server's choice. */ -}}
{{- define "conuredb.engine" -}}
{{- .Values.engine | default (ternary "lsm" "" (eq .Values.profile "kvstore")) -}}
{{- end -}}

{{- /* "true" if the server's ports speak TLS. */ -}}
{{- define "conuredb.servesTls" -}}
{{- if and .Values.tls.enabled (include "conuredb.hasTlsSecret" .) -}}
true
{{- end -}}
{{- end -}}

{{- /* How another node would have to prove itself. There is none, so nobody has to be waited for. */ -}}
{{- define "conuredb.peerAuth" -}}
{{- .Values.peerAuth | default (empty (or .Values.clusterSecret.enabled (include "conuredb.usesPeerTls" .)) | ternary "open" "require") -}}
{{- end -}}

{{- define "conuredb.podSecurity" -}}
{{- $security := .Values.security -}}
{{- range $field := list "runAsNonRoot" "runAsUser" "runAsGroup" "fsGroup" }}
{{- if and (hasKey $security $field) (not (kindIs "invalid" (get $security $field))) }}
{{ $field }}: {{ toJson (get $security $field) }}
{{- end }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "conuredb.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: {{ .Values.security.readOnlyRootFilesystem }}
{{- end -}}

{{- define "conuredb.podCommon" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "conuredb.podSecurity" . | trim | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
