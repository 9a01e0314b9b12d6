#!/usr/bin/env bash
# The bank of docs/bank.md on this machine: a stand-in for the providers outside, `penstock up` with bank.yaml, a key for
# each tenant. Run from the repository's root, as `make bank` does; its arguments are passed on to `penstock up`.
set -euo pipefail

penstock=$PWD/target/release/penstock
examples=deploy/examples
bank=$PWD/target/bank
provider=$(grep -om1 'http://127.0.0.1:[0-9]*' $examples/bank.yaml)

# Each time the story starts anew.
rm -rf "$bank" && mkdir -p "$bank"

# What is started is not in the terminal's foreground: Ctrl-C comes here alone, and here it is passed on once.
set -m
started=()
finish() {
  trap - EXIT
  trap '' INT TERM
  for pid in "${started[@]}"; do
    { kill "$pid" && wait "$pid" || true; } 2>/dev/null
  done
}
trap finish EXIT
trap 'exit 0' INT TERM

python3 $examples/provider.py --port "${provider##*:}" &
started+=($!)

# The providers' keys; a bank has them from its vault, by {file: …}.
export ACME_API_KEY=stand-in NOTARY_API_KEY=stand-in
"$penstock" up --config $examples/bank.yaml --data-dir "$bank" --ready-file "$bank/ready.json" --grace 5s "$@" \
  >"$bank/up.log" 2>&1 &
started=($! "${started[@]}")
both_run() {
  local running
  running=($(jobs -rp))
  ((${#running[@]} == 2)) || { cat "$bank/up.log" >&2; exit 1; }
}
until [[ -e $bank/ready.json ]] && curl -sf --noproxy "*" -o "$bank/seen" "$provider/seen"; do
  both_run
  sleep 0.05
done
both_run
address() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$bank/ready.json" "$1"; }

export PENSTOCK_SERVER PENSTOCK_DATA_DIR=$bank
PENSTOCK_SERVER=$(address admin)
{
  echo "export PATH=\"${penstock%/*}:\$PATH\""
  echo "export PENSTOCK_SERVER=$PENSTOCK_SERVER PENSTOCK_DATA_DIR=\"$bank\""
  echo "export BANK=http://$(address http) PROVIDER=$provider"
  for tenant in web staff risk lab; do
    key=$("$penstock" tenant create $tenant -o table 2>>"$bank/up.log" | tail -1)
    echo "export ${tenant^^}_KEY=$key"
  done
} >"$bank/env.part"
mv "$bank/env.part" "$bank/env"

cat <<EOF
the bank         http://$(address http)
its admin port   $PENSTOCK_SERVER
the providers    $provider/seen shows what they were sent
its log          $bank/up.log

in another terminal, at the repository's root (docs/bank.md goes on from there):
  source target/bank/env
  curl -i \$BANK/v1/chat/completions -H "authorization: Bearer \$WEB_KEY" \\
    -d '{"model": "support", "messages": [{"role": "user", "content": "When do you open?"}]}'
ready; Ctrl-C ends both
EOF
wait "${started[0]}"
