#!/bin/busybox sh
# First process of the virtual machine: makes the host's root (read-only, over 9p) its own and goes on there.
# The kernel's command line names the script to run and the module tree.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/lib/$module" || echo "vm: cannot load $module"; done </lib/order
for word in $(cat /proc/cmdline); do
    case "$word" in
    vm.script=*) script=${word#vm.script=} ;;
    vm.modules=*) modules=${word#vm.modules=} ;;
    esac
done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /root || {
    echo "vm: cannot mount the host's files"
    poweroff -f
}
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
export VM_MODULES="$modules"
exec switch_root /root /bin/sh "$script"
