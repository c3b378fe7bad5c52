#!/usr/bin/env bash
# timed.sh NAME COMMAND…: run the command and print how long this part took.
name=$1; shift
start=$SECONDS
"$@"; status=$?
echo "── $name: $((SECONDS - start)) s, exit $status"
exit $status
