{{- /*
How a release is locked: what its servers are told, where their Secrets are mounted, how they are probed,
what is certified. The same in both charts; when which lock is closed is each chart's own (conuredb.peerAuth
and conuredb.servesTls in _helpers.tpl).
*/ -}}

{{- /* http or https: what the ports for clients speak. */ -}}
{{- define "conuredb.scheme" -}}
{{- empty (include "conuredb.servesTls" .) | ternary "http" "https" -}}
{{- end -}}

{{- /* The base URL by which a pod asks itself: its own name, for which its certificate is. */ -}}
{{- define "conuredb.ownUrl" -}}
{{ include "conuredb.scheme" . }}://$(CONURE_NODE_ID).{{ include "conuredb.name" . }}-hs.{{ .Release.Namespace }}.svc:8081
{{- end -}}

{{- /* The Secrets: of your own, or those that the chart or cert-manager makes. */ -}}
{{- define "conuredb.clusterSecret" -}}
{{- .Values.clusterSecret.existingSecret | default (printf "%s-cluster" (include "conuredb.name" .)) -}}
{{- end -}}

{{- define "conuredb.tlsSecret" -}}
{{- .Values.tls.existingSecret | default (printf "%s-tls" (include "conuredb.name" .)) -}}
{{- end -}}

{{- define "conuredb.peerTlsSecret" -}}
{{- .Values.peerTLS.existingSecret | default (printf "%s-peer-tls" (include "conuredb.name" .)) -}}
{{- end -}}

{{- /* "true" if members show each other certificates. Those that cert-manager makes for a release that
is there aren't asked for before they are: no pod is taken away for one that can't start. */ -}}
{{- define "conuredb.usesPeerTls" -}}
{{- if .Values.peerTLS.enabled -}}
{{- if or .Values.peerTLS.existingSecret (not (include "conuredb.isThere" .)) (lookup "v1" "Secret" .Release.Namespace (include "conuredb.peerTlsSecret" .)) -}}
true
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* "true" if the Secret that tls names is there, or will be before there is anything to lose. */ -}}
{{- define "conuredb.hasTlsSecret" -}}
{{- if or .Values.tls.existingSecret (not (include "conuredb.isThere" .)) (lookup "v1" "Secret" .Release.Namespace (include "conuredb.tlsSecret" .)) -}}
true
{{- end -}}
{{- end -}}

{{- /* "true" if the release's pods are there. */ -}}
{{- define "conuredb.isThere" -}}
{{- if lookup "apps/v1" "StatefulSet" .Release.Namespace (include "conuredb.name" .) -}}
true
{{- end -}}
{{- end -}}

{{- /* Whether helm can look at the cluster: "true", or nothing in helm template and what is like it. */ -}}
{{- define "conuredb.canLook" -}}
{{- if lookup "v1" "Service" .Release.Namespace "" -}}
true
{{- end -}}
{{- end -}}

{{- /* How the locked doors are told to a server. */ -}}
{{- define "conuredb.doorsEnv" -}}
# Pods ask each other, and clients ask pods, from other addresses than the pod's own: protected mode
# would bar them all. Who may connect is the network policy's here, and that of certificates.
- name: CONURE_PROTECTED_MODE
  value: "false"
- name: CONURE_PEER_AUTH
  value: {{ include "conuredb.peerAuth" . }}
{{- if .Values.clusterSecret.enabled }}
- name: CONURE_CLUSTER_SECRET_FILE
  value: /etc/conure/cluster/cluster-secret
{{- end }}
{{- if include "conuredb.usesPeerTls" . }}
- name: CONURE_PEER_TLS_CERT
  value: /etc/conure/peer-tls/tls.crt
- name: CONURE_PEER_TLS_KEY
  value: /etc/conure/peer-tls/tls.key
- name: CONURE_PEER_TLS_CA
  value: /etc/conure/peer-tls/ca.crt
{{- end }}
{{- if include "conuredb.servesTls" . }}
- name: CONURE_TLS_CERT
  value: /etc/conure/tls/tls.crt
- name: CONURE_TLS_KEY
  value: /etc/conure/tls/tls.key
- name: CONURE_TLS_CA
  value: /etc/conure/tls/ca.crt
{{- if ne .Values.tls.clientAuth "none" }}
- name: CONURE_TLS_CLIENT_AUTH
  value: {{ .Values.tls.clientAuth }}
- name: CONURE_TLS_CLIENT_CA
  value: /etc/conure/{{ ternary "client-ca" "tls" (ne .Values.tls.clientCASecret "") }}/ca.crt
{{- end }}
- name: CONURE_TLS_MIN_VERSION
  value: {{ .Values.tls.minVersion | quote }}
{{- end }}
{{- if .Values.tls.enabled }}
# What is run in the pod asks its server by this. (Whoever has a CA would ask by TLS else, which is
# not spoken yet while the certificate is only handed out.)
- name: CONURE_SERVER
  value: {{ include "conuredb.ownUrl" . }}
{{ include "conuredb.clientEnv" . }}
{{- end }}
{{- end -}}

{{- /* How those who ask servers by TLS prove themselves, and know whom they ask. */ -}}
{{- define "conuredb.clientEnv" -}}
# The name that each pod's certificate bears, also where it is asked by its address.
- name: CONURE_TLS_NAME
  value: {{ include "conuredb.name" . }}.{{ .Release.Namespace }}.svc
- name: CONURE_CA
  value: /etc/conure/tls/ca.crt
- name: CONURE_CERT
  value: /etc/conure/tls/tls.crt
- name: CONURE_KEY
  value: /etc/conure/tls/tls.key
{{- end -}}

{{- /* Folders and no single files, so that a changed Secret arrives in a pod that runs. */ -}}
{{- define "conuredb.doorsMounts" -}}
{{- if .Values.clusterSecret.enabled }}
- name: cluster-secret
  mountPath: /etc/conure/cluster
  readOnly: true
{{- end }}
{{- if include "conuredb.usesPeerTls" . }}
- name: peer-tls
  mountPath: /etc/conure/peer-tls
  readOnly: true
{{- end }}
{{- if and .Values.tls.enabled (ne .Values.tls.clientAuth "none") .Values.tls.clientCASecret }}
- name: client-ca
  mountPath: /etc/conure/client-ca
  readOnly: true
{{- end }}
{{- if .Values.tls.enabled }}
{{ include "conuredb.clientMount" . }}
{{- end }}
{{- end -}}

{{- define "conuredb.clientMount" -}}
- name: tls
  mountPath: /etc/conure/tls
  readOnly: true
{{- end -}}

{{- define "conuredb.doorsVolumes" -}}
{{- if .Values.clusterSecret.enabled }}
- name: cluster-secret
  secret:
    secretName: {{ include "conuredb.clusterSecret" . }}
    defaultMode: 0440
    items:
      - key: {{ .Values.clusterSecret.key }}
        path: cluster-secret
{{- end }}
{{- if include "conuredb.usesPeerTls" . }}
- name: peer-tls
  secret:
    secretName: {{ include "conuredb.peerTlsSecret" . }}
    defaultMode: 0440
{{- end }}
{{- if and .Values.tls.enabled (ne .Values.tls.clientAuth "none") .Values.tls.clientCASecret }}
- name: client-ca
  secret:
    secretName: {{ .Values.tls.clientCASecret }}
    defaultMode: 0440
    items:
      - key: ca.crt
        path: ca.crt
{{- end }}
{{- if .Values.tls.enabled }}
{{ include "conuredb.clientVolume" (dict "secret" (include "conuredb.tlsSecret" .) "optional" (empty (include "conuredb.servesTls" .))) }}
{{- end }}
{{- end -}}

{{- /* Takes: secret (its name), optional (whether a pod starts without it). */ -}}
{{- define "conuredb.clientVolume" -}}
- name: tls
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    {{- if .optional }}
    optional: true
    {{- end }}
{{- end -}}

{{- /* How a page of the server is asked for by the kubelet, which has no certificate of ours. Takes
root and path. */ -}}
{{- define "conuredb.probe" -}}
{{- $root := .root -}}
{{- $tls := include "conuredb.servesTls" $root -}}
{{- if and $tls (eq $root.Values.tls.clientAuth "require") -}}
exec:
  command: [python3, -m, conure.ops.probe, "https://127.0.0.1:8081{{ .path }}"]
{{- else -}}
httpGet:
  path: {{ .path }}
  port: http
  {{- if $tls }}
  scheme: HTTPS
  {{- end }}
{{- end }}
{{- end -}}

{{- /*
What members and clients are certified by. Takes: root, name (of the object and its Secret), names
(DNS names, a list), loopback (whether the pod's own loopback address is among them).
*/ -}}
{{- define "conuredb.certificate" -}}
{{- $root := .root -}}
{{- $manager := $root.Values.certManager -}}
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  name: {{ .name }}
  labels:
    {{- include "conuredb.labels" $root | nindent 4 }}
spec:
  secretName: {{ .name }}
  dnsNames:
    {{- toYaml .names | nindent 4 }}
  {{- if .loopback }}
  ipAddresses: ["127.0.0.1", "::1"]
  {{- end }}
  # A pod shows its certificate as a client, too, when it asks another pod.
  usages: [digital signature, key encipherment, server auth, client auth]
  privateKey:
    algorithm: ECDSA
    size: 256
    rotationPolicy: Always
  duration: {{ $manager.duration }}
  renewBefore: {{ $manager.renewBefore }}
  issuerRef:
    {{- toYaml $manager.issuerRef | nindent 4 }}
{{- end -}}

{{- /* What a StatefulSet that is there tells its servers by a variable. Takes: set, variable. */ -}}
{{- define "conuredb.told" -}}
{{- $variable := .variable -}}
{{- range $container := dig "spec" "template" "spec" "containers" list .set -}}
{{- range $given := $container.env -}}
{{- if eq $given.name $variable -}}
{{- $given.value -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The Secret by which the servers that run just now are asked, nothing if they speak plain HTTP:
what a job has to know that comes before an upgrade. */ -}}
{{- define "conuredb.tlsSecretBefore" -}}
{{- $set := lookup "apps/v1" "StatefulSet" .Release.Namespace (include "conuredb.name" .) -}}
{{- if $set -}}
{{- if include "conuredb.told" (dict "set" $set "variable" "CONURE_TLS_CERT") -}}
{{- range $volume := dig "spec" "template" "spec" "volumes" list $set -}}
{{- if eq $volume.name "tls" -}}
{{- $volume.secret.secretName -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- else if include "conuredb.servesTls" . -}}
{{- include "conuredb.tlsSecret" . -}}
{{- end -}}
{{- end -}}

{{- /* Fails where an upgrade would start pods that can't: a Secret is not there, or lacks a key.
Takes: root, secret, keys, value (what names it). */ -}}
{{- define "conuredb.checkSecret" -}}
{{- $root := .root -}}
{{- $found := lookup "v1" "Secret" $root.Release.Namespace .secret -}}
{{- range $key := .keys -}}
{{- if not (hasKey (dig "data" dict $found) $key) -}}
{{- fail (printf "%s: the Secret %s in namespace %s %s; the release stays as it is until there is one, see docs/kubernetes.md" $.value $.secret $root.Release.Namespace (empty $found | ternary "is not there" (printf "has no key %s" $key))) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The ports of a network policy: what clients use, and where names are asked for. */ -}}
{{- define "conuredb.clientPorts" -}}
- port: http
{{- range $front := list "resp" "rest" "metrics" }}
{{- if include "conuredb.serves" (dict "root" $ "front" $front) }}
- port: {{ $front }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "conuredb.dnsPorts" -}}
{{- range $port := list 53 5353 }}
{{- range $protocol := list "UDP" "TCP" }}
- port: {{ $port }}
  protocol: {{ $protocol }}
{{- end }}
{{- end }}
{{- end -}}
