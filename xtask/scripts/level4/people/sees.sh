#!/bin/sh -eu
# Waits until a client of a user has seen something.
user=$1
word=$2

wait_until 180 "$word at $user" grep -q "$word" "/home/$user/seen"
