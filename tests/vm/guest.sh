#!/bin/sh
# Second process of the virtual machine, in the host's root: a place to write, modules, then the job; its exit code goes
# to the results, and the machine off. The job is a shell script among the results.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run LANG=C.UTF-8
mount -t tmpfs -o size=70% tmp /tmp
mount -t tmpfs run /run
mkdir -p /run/results /run/netns /run/lock /dev/shm
mount -t tmpfs shm /dev/shm
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 results /run/results

# The kernel loads modules by a program at a path of ours: the host has none at /lib/modules for this kernel.
printf '#!/bin/sh\nexec modprobe -d %s "$@"\n' "$VM_MODULES" >/run/modprobe
chmod 755 /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe
ip link set lo up
cat /proc/uptime >/run/results/booted

sh /run/results/job.sh
echo $? >/run/results/status
sync
echo o >/proc/sysrq-trigger
while :; do :; done # programs of the host are gone by now
