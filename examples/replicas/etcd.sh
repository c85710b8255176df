#!/bin/sh
# Three members of etcd on this machine, over mutual TLS, to try out several replicas of the
# control plane with (docs/replicas.md). In production each member has a machine of its own.
#
#   etcd.sh start DIR      make certificates and start the members; their data and logs are in DIR
#   etcd.sh kill DIR       end the member that leads at once, as when its machine fails
#   etcd.sh restart DIR    start the members again that do not run
#   etcd.sh stop DIR       end all of them
#   etcd.sh ctl DIR ARG..  etcdctl with the rights of root
#
# `etcd` and `etcdctl` are those of PATH. ETCD_PORTS are the ports of the members on 127.0.0.1.
set -eu

[ $# -ge 2 ] || { sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2; exit 1; }
command=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
ports=${ETCD_PORTS:-12379 12380 12381}
unset ETCD_PORTS # etcd warns of variables that it does not know

# issue NAME SUBJECT EXTENSIONS: a key, and a certificate of the authority.
issue() {
	openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "$2" -keyout "$dir/$1.key" -out "$dir/$1.csr" 2>/dev/null
	printf '%s\n' "$3" > "$dir/$1.ext"
	openssl x509 -req -in "$dir/$1.csr" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -CAcreateserial -days 365 -extfile "$dir/$1.ext" -out "$dir/$1.crt" 2>/dev/null
	rm "$dir/$1.csr" "$dir/$1.ext"
}

# The authority of etcd is its own: that of Penstock signs proxies, which etcd must not let in.
certificates() {
	[ ! -e "$dir/ca.crt" ] || return 0
	umask 077
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj "/CN=etcd" -keyout "$dir/ca.key" -out "$dir/ca.crt" 2>/dev/null
	issue member "/CN=member" "subjectAltName=IP:127.0.0.1,IP:127.0.1.1
extendedKeyUsage=serverAuth,clientAuth"
	# With `etcdctl auth enable` the name of the certificate is the user.
	issue penstock "/CN=penstock" "extendedKeyUsage=clientAuth"
	issue root "/CN=root" "extendedKeyUsage=clientAuth"
}

# Members speak to each other on another address, so that each needs one port.
port() { echo "$ports" | cut -d ' ' -f "$1"; }
clients() { echo "https://127.0.0.1:$(port "$1")"; }
peers() { echo "https://127.0.1.1:$(port "$1")"; }
all() { echo "$(clients 1),$(clients 2),$(clients 3)"; }
ctl() { # ENDPOINTS ARGUMENTS
	endpoints=$1
	shift
	etcdctl --endpoints "$endpoints" --cacert "$dir/ca.crt" --cert "$dir/root.crt" --key "$dir/root.key" "$@"
}

member() {
	etcd --name "member-$1" --data-dir "$dir/member-$1" \
		--listen-client-urls "$(clients "$1")" --advertise-client-urls "$(clients "$1")" \
		--listen-peer-urls "$(peers "$1")" --initial-advertise-peer-urls "$(peers "$1")" \
		--initial-cluster "member-1=$(peers 1),member-2=$(peers 2),member-3=$(peers 3)" \
		--client-cert-auth --trusted-ca-file "$dir/ca.crt" --cert-file "$dir/member.crt" --key-file "$dir/member.key" \
		--peer-client-cert-auth --peer-trusted-ca-file "$dir/ca.crt" --peer-cert-file "$dir/member.crt" --peer-key-file "$dir/member.key" \
		--auto-compaction-mode periodic --auto-compaction-retention 1h \
		--log-level warn >> "$dir/member-$1.log" 2>&1 &
	echo $! > "$dir/member-$1.pid"
}

running() { kill -0 "$(cat "$dir/member-$1.pid")" 2> /dev/null; }

# healthy waits until a member answers.
healthy() {
	until ctl "$(clients "$1")" endpoint health > /dev/null 2>&1; do
		running "$1" || { tail -n 5 "$dir/member-$1.log" >&2; echo "member $1 has ended" >&2; exit 1; }
		sleep 0.1
	done
}

case $command in
start)
	certificates
	for n in 1 2 3; do member $n; done
	for n in 1 2 3; do healthy $n; done
	all
	;;
kill)
	for n in 1 2 3; do
		running $n && ctl "$(clients $n)" endpoint status | cut -d , -f 9 | grep -q true || continue
		kill -9 "$(cat "$dir/member-$n.pid")"
		echo "member $n has ended"
		exit
	done
	echo "no member leads" >&2
	exit 1
	;;
restart)
	for n in 1 2 3; do running $n || member $n; done
	for n in 1 2 3; do healthy $n; done
	;;
ctl)
	shift 2
	ctl "$(all)" "$@"
	;;
stop)
	for n in 1 2 3; do
		kill "$(cat "$dir/member-$n.pid")" 2> /dev/null || true
	done
	;;
*)
	echo "unknown command $command" >&2
	exit 1
	;;
esac
