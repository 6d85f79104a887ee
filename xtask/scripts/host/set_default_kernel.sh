#!/bin/sh -eu
# Sets the default kernel in the configuration of the host; without a name, removes it.
kernel=$1

config=/etc/banger/config.toml
mkdir -p /etc/banger
touch $config
if grep -qx "default_kernel_name = \"$kernel\"" $config; then exit; fi
sed -i /^default_kernel_name/d $config
if [ -n "$kernel" ]; then
    printf 'default_kernel_name = "%s"\n' "$kernel" | cat - $config > $config.new
    mv $config.new $config
fi
systemctl try-restart banger-system
