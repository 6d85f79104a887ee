#!/bin/sh -eu
# Sets the default image in the configuration of the host.
image=$1

config=/etc/banger/config.toml
mkdir -p /etc/banger
touch $config
sed -i /^default_image_name/d $config
printf 'default_image_name = "%s"\n' "$image" | cat - $config > $config.new
mv $config.new $config
systemctl try-restart banger-system
