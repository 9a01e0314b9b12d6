{{/* What all objects are named after: the release, cut with a digest of the whole where it is long, so that two
     releases never meet. A StatefulSet's name, pool included, must stay under 52 characters. */}}
{{- define "penstock.name" -}}
{{- if gt (len .Release.Name) 26 -}}
{{ printf "%s-%s" (trunc 17 .Release.Name | trimSuffix "-") (sha256sum .Release.Name | trunc 8) }}
{{- else -}}
{{ .Release.Name }}
{{- end -}}
{{- end }}

{{/* Of (root, component[, pool]): what selects its pods. */}}
{{- define "penstock.selector" -}}
app.kubernetes.io/name: penstock
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- with .pool }}
penstock.dev/pool: {{ . }}
{{- end }}
{{- end }}

{{- define "penstock.labels" -}}
{{ include "penstock.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "penstock.meta" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "penstock.labels" . | nindent 2 }}
{{- end }}

{{/* Of (image, at, fallback): its reference; `at` is where it stands in the values. */}}
{{- define "penstock.imageOf" -}}
{{- $tag := .image.tag | default .fallback -}}
{{- if and (eq ($tag | default "latest") "latest") (not .image.digest) -}}
{{- fail (printf "%s.tag: %q names whatever is newest; give a version, or a digest" .at (.image.tag | default "latest")) -}}
{{- end -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ $tag }}
{{- end -}}
{{- end }}

{{- define "penstock.image" -}}
image: {{ include "penstock.imageOf" (dict "image" .Values.image "at" "image" "fallback" .Chart.AppVersion) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* What every pod keeps to: nobody's user, no token. */}}
{{- define "penstock.pod" -}}
serviceAccountName: {{ .Values.serviceAccount.name | default (include "penstock.name" .) }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* What every container keeps to. */}}
{{- define "penstock.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Of what may be selected: nodeSelector and tolerations. */}}
{{- define "penstock.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Resources of small containers that come and go. */}}
{{- define "penstock.small" -}}
resources:
  requests: {cpu: 50m, memory: 64Mi}
  limits: {cpu: "1", memory: 512Mi}
{{- end }}

{{/* "true" where the parts speak TLS. */}}
{{- define "penstock.tls" -}}
{{- if ne .Values.tls.mode "none" }}true{{ end -}}
{{- end }}

{{/* Of (root, part): the Secret that the part proves itself with. */}}
{{- define "penstock.tlsSecret" -}}
{{- if eq .root.Values.tls.mode "secrets" -}}
{{ index .root.Values.tls.secrets .part }}
{{- else -}}
{{ include "penstock.name" .root }}-{{ .part }}-tls
{{- end -}}
{{- end }}

{{- define "penstock.operatorSecret" -}}
{{ .Values.tls.operatorSecret | default (include "penstock.tlsSecret" (dict "root" . "part" "router")) }}
{{- end }}

{{/* Where clients of etcd find it. */}}
{{- define "penstock.etcdUrls" -}}
{{- if eq .Values.etcd.mode "external" -}}
{{ join "," .Values.etcd.external.endpoints }}
{{- else -}}
{{- $name := printf "%s-etcd" (include "penstock.name" .) -}}
{{- $scheme := ternary "https" "http" (eq (include "penstock.tls" .) "true") -}}
{{- $urls := list -}}
{{- range until (int .Values.etcd.internal.replicas) -}}
{{- $urls = append $urls (printf "%s://%s-%d.%s.%s.svc:2379" $scheme $name . $name $.Release.Namespace) -}}
{{- end -}}
{{ join "," $urls }}
{{- end -}}
{{- end }}

{{/* Flags that routers and workers share. */}}
{{- define "penstock.clusterFlags" -}}
- --data-dir=/var/lib/penstock
- --log-format=json
- --etcd={{ include "penstock.etcdUrls" . }}
{{- if include "penstock.tls" . }}
- --tls-cert=/etc/penstock/tls/tls.crt
- --tls-key=/etc/penstock/tls/tls.key
- --tls-ca=/etc/penstock/tls/ca.crt
{{- end }}
{{- if eq .Values.etcd.mode "internal" }}
{{- if include "penstock.tls" . }}
- --etcd-ca=/etc/penstock/tls/ca.crt
- --etcd-cert=/etc/penstock/tls/tls.crt
- --etcd-key=/etc/penstock/tls/tls.key
{{- end }}
{{- else }}
{{- with .Values.etcd.external }}
{{- if .tlsSecret }}
- --etcd-ca=/etc/penstock/etcd/ca.crt
{{- if .clientCertificate }}
- --etcd-cert=/etc/penstock/etcd/tls.crt
- --etcd-key=/etc/penstock/etcd/tls.key
{{- end }}
{{- end }}
{{- if .user }}
- --etcd-user={{ .user }}
- --etcd-password-file=/etc/penstock/etcd-password/{{ .password.key }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* "true" where etcd is reached without TLS. */}}
{{- define "penstock.plainEtcd" -}}
{{- if contains "http://" (include "penstock.etcdUrls" .) }}true{{ end -}}
{{- end }}

{{/* Of (root, part): mounts and volumes that routers and workers share. */}}
{{- define "penstock.clusterMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if include "penstock.tls" .root }}
- {name: tls, mountPath: /etc/penstock/tls, readOnly: true}
{{- end }}
{{- if eq .root.Values.etcd.mode "external" }}
{{- if .root.Values.etcd.external.tlsSecret }}
- {name: etcd-tls, mountPath: /etc/penstock/etcd, readOnly: true}
{{- end }}
{{- if .root.Values.etcd.external.user }}
- {name: etcd-password, mountPath: /etc/penstock/etcd-password, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{- define "penstock.clusterVolumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- if include "penstock.tls" .root }}
- name: tls
  secret: {secretName: {{ include "penstock.tlsSecret" . }}, defaultMode: 0440}
{{- end }}
{{- if eq .root.Values.etcd.mode "external" }}
{{- with .root.Values.etcd.external }}
{{- if .tlsSecret }}
- name: etcd-tls
  secret: {secretName: {{ .tlsSecret }}, defaultMode: 0440}
{{- end }}
{{- if .user }}
- name: etcd-password
  secret: {secretName: {{ .password.secret }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Environment variables out of a map. */}}
{{- define "penstock.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* A pool over the defaults, as JSON. A plain merge would lose zeros, empty texts and false. */}}
{{- define "penstock.pool" -}}
{{- $pool := deepCopy .defaults -}}
{{- range $key, $value := .pool -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $pool $key)) -}}
{{- range $inner, $of := $value -}}{{- $_ := set (get $pool $key) $inner $of -}}{{- end -}}
{{- else -}}
{{- $_ := set $pool $key $value -}}
{{- end -}}
{{- end -}}
{{- toJson $pool -}}
{{- end }}

{{/* What the schema cannot say of the values as a whole. */}}
{{- define "penstock.check" -}}
{{- $names := dict -}}
{{- range $index, $given := .Values.workers -}}
{{- $at := printf "workers[%d] (%s)" $index $given.name -}}
{{- if hasKey $names $given.name -}}
{{- fail (printf "%s: another pool has that name; give each pool its own" $at) -}}
{{- end -}}
{{- $_ := set $names $given.name true -}}
{{- $pool := include "penstock.pool" (dict "defaults" $.Values.workerDefaults "pool" $given) | fromJson -}}
{{- if and (eq $pool.runner "model") (not $pool.source) -}}
{{- fail (printf "%s: source is missing; name the model's file as hf:, https: or file:, or take runner: scripted" $at) -}}
{{- end -}}
{{- if and (hasPrefix "file:/models/" ($pool.source | default "")) (not $pool.modelClaim) -}}
{{- fail (printf "%s: source %s lies on a claim; name it in modelClaim" $at $pool.source) -}}
{{- end -}}
{{- if and (ne $pool.device "cpu") (lt (int $pool.gpus) 1) -}}
{{- fail (printf "%s: device %s needs gpus of 1 or more" $at $pool.device) -}}
{{- end -}}
{{- if gt (int $pool.tensorParallel) (max 1 (int $pool.gpus)) -}}
{{- fail (printf "%s: tensorParallel %v is more than gpus, %v" $at $pool.tensorParallel $pool.gpus) -}}
{{- end -}}
{{- if and $pool.autoscaling.enabled (gt (int $pool.autoscaling.minReplicas) (int $pool.autoscaling.maxReplicas)) -}}
{{- fail (printf "%s: autoscaling.minReplicas %v is above maxReplicas %v" $at $pool.autoscaling.minReplicas $pool.autoscaling.maxReplicas) -}}
{{- end -}}
{{- end -}}
{{- with .Values.router.autoscaling -}}
{{- if and .enabled (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- fail (printf "router.autoscaling.minReplicas %v is above maxReplicas %v" .minReplicas .maxReplicas) -}}
{{- end -}}
{{- end -}}
{{- end }}
