{{- define "conuredb.name" -}}
{{- .Values.fullnameOverride | default (printf "%s-conure" .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* How many pods the StatefulSet of voters has: all but the one that founds the cluster. */ -}}
{{- define "conuredb.others" -}}
{{- sub (int .Values.voters.replicas) 1 -}}
{{- end -}}

{{- /* "true" if there is an arbiter, else nothing. */ -}}
{{- define "conuredb.arbiter" -}}
{{- $mode := .Values.arbiter.mode -}}
{{- if or (eq $mode "always") (and (eq $mode "auto") (eq (mod (int .Values.voters.replicas) 2) 0)) -}}
true
{{- end -}}
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

{{- /* The base URL of a member by its pod's name, which stays when the pod's address changes. */ -}}
{{- define "conuredb.url" -}}
{{ include "conuredb.scheme" .root }}://{{ .pod }}.{{ include "conuredb.name" .root }}-hs.{{ .root.Release.Namespace }}.svc:8081
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

{{- /* "true" if the servers' ports speak TLS. A release that is there first gets its keys, so that the
pods of the next upgrade, which speak one or the other, can ask each other while they take turns. */ -}}
{{- define "conuredb.servesTls" -}}
{{- if .Values.tls.enabled -}}
{{- $handed := ne (include "conuredb.hasTlsSecret" .) "" -}}
{{- $set := lookup "apps/v1" "StatefulSet" .Release.Namespace (include "conuredb.name" .) -}}
{{- if and $set (not (include "conuredb.told" (dict "set" $set "variable" "CONURE_CA"))) -}}
{{- $handed = false -}}
{{- end -}}
{{- if $handed -}}
true
{{- end -}}
{{- end -}}
{{- end -}}

{{- /*
How members prove themselves. What isn't said is require for a new release. In one that is there and
was open, old and new pods have to get on with each other while they are replaced: this upgrade
offers, and one after it, when all pods were replaced, requires.
*/ -}}
{{- define "conuredb.peerAuth" -}}
{{- if .Values.peerAuth -}}
{{- .Values.peerAuth -}}
{{- else if not (or .Values.clusterSecret.enabled (include "conuredb.usesPeerTls" .)) -}}
open
{{- else -}}
{{- $auth := "require" -}}
{{- $name := include "conuredb.name" . -}}
{{- range $one := list $name (printf "%s-bootstrap" $name) (printf "%s-arbiter" $name) -}}
{{- $set := lookup "apps/v1" "StatefulSet" $.Release.Namespace $one -}}
{{- if $set -}}
{{- $before := include "conuredb.told" (dict "set" $set "variable" "CONURE_PEER_AUTH") | default "open" -}}
{{- if or (eq $before "open") (and (eq $before "offer") (not (include "conuredb.isRolledOut" $set))) -}}
{{- $auth = "offer" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $auth -}}
{{- end -}}
{{- end -}}

{{- /* "true" if all pods of a StatefulSet are those of its template, and ready. */ -}}
{{- define "conuredb.isRolledOut" -}}
{{- $wanted := int .spec.replicas -}}
{{- if and (eq (int (dig "status" "updatedReplicas" 0 .)) $wanted) (eq (int (dig "status" "readyReplicas" 0 .)) $wanted) (eq (int (dig "status" "observedGeneration" 0 .)) (int .metadata.generation)) -}}
true
{{- end -}}
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

{{- /* What all pods have in common, the job's and the test's too. */ -}}
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
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- /* The addresses are names, never a pod's IP. All pods are told the same seeds: nothing here
depends on the number of members, or scaling would restart them all. */ -}}
{{- define "conuredb.env" -}}
{{- $name := include "conuredb.name" . -}}
- name: CONURE_NODE_ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: CONURE_DATA_DIR
  value: /var/lib/conure
{{- with .Values.profile }}
- name: CONURE_PROFILE
  value: {{ . }}
{{- end }}
- name: {{ ternary "CONURE_API_ADDR" "CONURE_HTTP_ADDR" (eq .Values.profile "kvstore") }}
  value: ":8081"
- name: CONURE_RAFT_ADDR
  value: ":7001"
- name: CONURE_RAFT_ADVERTISE
  value: $(CONURE_NODE_ID).{{ $name }}-hs.{{ .Release.Namespace }}.svc:7001
- name: CONURE_SEEDS
  value: {{ include "conuredb.clientUrl" . }},{{ include "conuredb.url" (dict "root" . "pod" (printf "%s-bootstrap-0" $name)) }}
- name: CONURE_FOLLOWER_MODE
  value: forward
{{- with .Values.quorumSize }}
- name: CONURE_QUORUM_SIZE
  value: {{ . | quote }}
{{- end }}
{{- with include "conuredb.engine" . }}
- name: CONURE_ENGINE
  value: {{ . }}
{{- end }}
{{- with .Values.maxMemSize }}
- name: CONURE_MAX_MEM_SIZE
  value: {{ . | quote }}
{{- end }}
{{- if include "conuredb.serves" (dict "root" . "front" "resp") }}
- name: CONURE_RESP_ADDR
  value: ":9090"
{{- end }}
{{- if include "conuredb.serves" (dict "root" . "front" "rest") }}
- name: CONURE_REST_ADDR
  value: ":8080"
{{- end }}
{{- if include "conuredb.serves" (dict "root" . "front" "metrics") }}
- name: CONURE_METRICS_ADDR
  value: ":2112"
{{- end }}
{{ include "conuredb.doorsEnv" . }}
{{- with .Values.allowedHosts }}
- name: CONURE_ALLOWED_HOSTS
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /*
A StatefulSet of members. Takes: root, name, component (bootstrap, voter, arbiter), replicas,
resources, pvc, settle (seconds for which nobody else may be missing before a pod stops).
*/ -}}
{{- define "conuredb.members" -}}
{{- $root := .root -}}
{{- $name := include "conuredb.name" $root -}}
{{- $isBootstrap := eq .component "bootstrap" -}}
{{- $role := ternary "arbiter" "data" (eq .component "arbiter") -}}
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ .name }}
  labels:
    {{- include "conuredb.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
spec:
  replicas: {{ .replicas }}
  serviceName: {{ $name }}-hs
  # All at once after an outage: who waits for the one before it to be ready waits for a quorum.
  # Updates go one pod at a time all the same.
  podManagementPolicy: Parallel
  selector:
    matchLabels:
      {{- include "conuredb.selector" $root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
  template:
    metadata:
      labels:
        {{- include "conuredb.selector" $root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
        conuredb.dev/member: "true"
        conuredb.dev/role: {{ $role }}
      {{- with $root.Values.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "conuredb.podCommon" $root | nindent 6 }}
      terminationGracePeriodSeconds: {{ $root.Values.terminationGracePeriodSeconds }}
      affinity:
        {{- with $root.Values.affinity }}
        {{- toYaml . | nindent 8 }}
        {{- else }}
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              podAffinityTerm:
                topologyKey: kubernetes.io/hostname
                labelSelector:
                  matchLabels:
                    {{- include "conuredb.selector" $root | nindent 20 }}
                    conuredb.dev/member: "true"
        {{- end }}
      {{- with $root.Values.topologySpreadConstraints }}
      topologySpreadConstraints:
        {{- range . }}
        {{- $default := dict "matchLabels" (merge (dict "conuredb.dev/member" "true") (include "conuredb.selector" $root | fromYaml)) }}
        - {{- merge (deepCopy .) (dict "labelSelector" $default) | toYaml | nindent 10 }}
        {{- end }}
      {{- end }}
      {{- if not $isBootstrap }}
      initContainers:
        - name: wait-for-bootstrap
          image: {{ include "conuredb.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: [python3, /app/scaling.py, wait]
          args:
            - --data-dir=/var/lib/conure
            - --host={{ $name }}-bootstrap-0.{{ $name }}-hs.{{ $root.Release.Namespace }}.svc
            - --server={{ include "conuredb.clientUrl" $root }}
          securityContext:
            {{- include "conuredb.containerSecurity" $root | nindent 12 }}
          resources:
            {{- toYaml .resources | nindent 12 }}
          volumeMounts:
            - name: data
              mountPath: /var/lib/conure
            {{- if include "conuredb.servesTls" $root }}
            {{- include "conuredb.clientMount" $root | nindent 12 }}
          env:
            {{- include "conuredb.clientEnv" $root | nindent 12 }}
            {{- end }}
      {{- end }}
      containers:
        - name: conuredb
          image: {{ include "conuredb.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          {{- if $isBootstrap }}
          # Founds a cluster only while none of the others belongs to one; else it joins.
          command: [python3, /app/scaling.py, begin]
          args:
            - --data-dir=/var/lib/conure
            - --peers={{ $name }}-hs.{{ $root.Release.Namespace }}.svc
            {{- range $ordinal := until (min 2 (include "conuredb.others" $root | int) | int) }}
            - --witness={{ include "conuredb.url" (dict "root" $root "pod" (printf "%s-%d" $name $ordinal)) }}
            {{- end }}
            - --
            {{- with $root.Values.extraArgs }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- else if $root.Values.extraArgs }}
          args:
            {{- toYaml $root.Values.extraArgs | nindent 12 }}
          {{- end }}
          env:
            {{- include "conuredb.env" $root | nindent 12 }}
            {{- if eq $role "arbiter" }}
            - name: CONURE_ROLE
              value: arbiter
            {{- end }}
          ports:
            - name: http
              containerPort: 8081
            - name: raft
              containerPort: 7001
            {{- if include "conuredb.serves" (dict "root" $root "front" "resp") }}
            - name: resp
              containerPort: 9090
            {{- end }}
            {{- if include "conuredb.serves" (dict "root" $root "front" "rest") }}
            - name: rest
              containerPort: 8080
            {{- end }}
            {{- if include "conuredb.serves" (dict "root" $root "front" "metrics") }}
            - name: metrics
              containerPort: 2112
            {{- end }}
          startupProbe:
            {{- include "conuredb.probe" (dict "root" $root "path" "/livez") | nindent 12 }}
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: {{ div (int $root.Values.probes.startupSeconds) 2 }}
          livenessProbe:
            {{- include "conuredb.probe" (dict "root" $root "path" "/livez") | nindent 12 }}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
          readinessProbe:
            {{- include "conuredb.probe" (dict "root" $root "path" "/readyz") | nindent 12 }}
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 2
          lifecycle:
            preStop:
              exec:
                command:
                  - python3
                  - /app/scaling.py
                  - leave
                  - --settle={{ .settle }}
                  - --timeout={{ sub (int $root.Values.terminationGracePeriodSeconds) 30 }}
          securityContext:
            {{- include "conuredb.containerSecurity" $root | nindent 12 }}
          resources:
            {{- toYaml .resources | nindent 12 }}
          volumeMounts:
            - name: data
              mountPath: /var/lib/conure
            {{- with include "conuredb.doorsMounts" $root | trim }}
            {{- . | nindent 12 }}
            {{- end }}
      {{- with include "conuredb.doorsVolumes" $root | trim }}
      volumes:
        {{- . | nindent 8 }}
      {{- end }}
  volumeClaimTemplates:
    - metadata:
        name: data
        labels:
          {{- include "conuredb.selector" $root | nindent 10 }}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .pvc.storageClassName }}
        storageClassName: {{ . }}
        {{- end }}
        resources:
          requests:
            storage: {{ .pvc.size }}
{{- end -}}
