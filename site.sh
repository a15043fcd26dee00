#!/bin/sh
# Keeps the SuperNode of a site running: it comes back after a crash, a lost line and a restart of the server.
# lit-fedbabu-site.service starts this file when the machine starts. What is set outside wins over these lines:
: "${SUPERLINK:=superlink.example.org:8443}"
: "${CREDENTIALS:=$HOME/credentials}" # the folder with ca.crt and the site's private key
: "${SITE:=0}"
: "${IMAGES:=/data/images}"
: "${MORE:=}" # of the node-config, as name="St Mary" or state-path="/data/state"

trap 'kill "$node" 2> /dev/null; wait; exit 0' TERM INT HUP
while :; do
    lit-fedbabu supernode --superlink "$SUPERLINK" --root-certificates "$CREDENTIALS/ca.crt" \
        --auth-supernode-private-key "$CREDENTIALS/site-$SITE" \
        --node-config "client-id=$SITE data-path=\"$IMAGES\" $MORE" "$@" &
    node=$!
    wait "$node"
    status=$?
    pause=20
    [ "$status" -ne 2 ] || pause=300 # it was refused, for which there is a line above
    echo "site.sh: the SuperNode ended with status $status and is started again in $pause s"
    sleep "$pause" &
    node=$!
    wait "$node"
done
