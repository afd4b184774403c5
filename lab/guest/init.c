/*
 * init - what the lab's guest runs as process 1
 *
 * Loads the modules /modules/0.ko, 1.ko, ... in that order, gives UDP more
 * memory and eth0 its address, starts /bulk and becomes /stream.  Its settings
 * are on the kernel command line:
 *
 *   lab.address=10.77.0.2       eth0's address, in a /24
 *   lab.peer=10.77.0.1          the client and its MAC address, entered as a
 *   lab.peer_mac=52:54:...      fixed neighbour: ARP is no part of the test
 *   lab.address1=, lab.peer1=   the same for eth1, and so on, if there are more
 *   lab.port=7000               where /stream (UDP) and /bulk (TCP) listen
 *
 * When a step fails, it says which and ends.  The kernel then panics, and with
 * panic=-1 and QEMU's -no-reboot that ends QEMU, so that no wait is in vain.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

static char cmdline[4096];

static void check(int result, const char *step)
{
    if (result < 0) {
        printf("lab init: %s: %s\n", step, strerror(errno));
        exit(1);
    }
}

/* The value of a setting; valid until the next call. */
static const char *setting(const char *name)
{
    static char value[64];
    char key[32];
    const char *p;

    snprintf(key, sizeof(key), "%s=", name);
    p = strstr(cmdline, key);
    if (!p || sscanf(p + strlen(key), "%63s", value) != 1) {
        printf("lab init: %s= is missing on the kernel command line\n", name);
        exit(1);
    }
    return value;
}

static void set_address(struct sockaddr *address, const char *text)
{
    struct sockaddr_in *in = (struct sockaddr_in *)address;

    in->sin_family = AF_INET;
    inet_pton(AF_INET, text, &in->sin_addr);
}

static void load_modules(void)
{
    char name[32];

    for (int i = 0; ; i++) {
        int fd;

        snprintf(name, sizeof(name), "/modules/%d.ko", i);
        fd = open(name, O_RDONLY | O_CLOEXEC);
        if (fd < 0 && errno == ENOENT) {
            return;
        }
        check(fd, name);
        check(syscall(SYS_finit_module, fd, "", 0), name);
        close(fd);
    }
}

/*
 * A guest of this size gives UDP a seventh of its memory, and takes that back in
 * steps of a quarter of a socket's buffer: too little for a stream that waits.
 * It gets half.
 */
static void raise_udp_memory(void)
{
    struct sysinfo info;
    char pages[64];
    unsigned long half;
    int fd, len;

    check(sysinfo(&info), "sysinfo");
    half = (uint64_t)info.totalram * info.mem_unit / 2 / 4096;
    len = snprintf(pages, sizeof(pages), "%lu %lu %lu", half / 2, half / 4 * 3,
                   half);
    fd = open("/proc/sys/net/ipv4/udp_mem", O_WRONLY | O_CLOEXEC);
    check(fd, "udp_mem");
    check(write(fd, pages, len), "udp_mem");
    close(fd);
}

static void configure_network(const char *name, const char *address,
                              const char *peer)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq ifr = { 0 };
    struct arpreq arp = { .arp_flags = ATF_PERM | ATF_COM };
    unsigned char *mac = (unsigned char *)arp.arp_ha.sa_data;

    strcpy(ifr.ifr_name, name);
    set_address(&ifr.ifr_addr, setting(address));
    check(ioctl(fd, SIOCSIFADDR, &ifr), address);
    set_address(&ifr.ifr_netmask, "255.255.255.0");
    check(ioctl(fd, SIOCSIFNETMASK, &ifr), "the netmask");
    ifr.ifr_flags = IFF_UP | IFF_RUNNING;
    check(ioctl(fd, SIOCSIFFLAGS, &ifr), "the interface up");

    set_address(&arp.arp_pa, setting(peer));
    arp.arp_ha.sa_family = ARPHRD_ETHER;
    strcpy(arp.arp_dev, name);
    sscanf(setting("lab.peer_mac"), "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx",
           mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5);
    check(ioctl(fd, SIOCSARP, &arp), "the client's neighbour entry");
    close(fd);
}

int main(void)
{
    int fd;
    ssize_t len;

    setbuf(stdout, NULL);
    mkdir("/proc", 0755);
    check(mount("proc", "/proc", "proc", 0, NULL), "mount /proc");
    fd = open("/proc/cmdline", O_RDONLY);
    len = read(fd, cmdline, sizeof(cmdline) - 1);
    check(fd < 0 || len < 0 ? -1 : 0, "/proc/cmdline");
    close(fd);

    load_modules();
    raise_udp_memory();
    configure_network("eth0", "lab.address", "lab.peer");
    for (int n = 1; ; n++) {
        char name[16], address[32], peer[32];

        snprintf(name, sizeof(name), "eth%d", n);
        snprintf(address, sizeof(address), "lab.address%d", n);
        snprintf(peer, sizeof(peer), "lab.peer%d", n);
        if (!strstr(cmdline, address)) {
            break;
        }
        configure_network(name, address, peer);
    }
    printf("lab init: eth0 is %s\n", setting("lab.address"));
    if (!fork()) {
        execl("/bulk", "bulk", "sink", setting("lab.port"), NULL);
        check(-1, "/bulk");
    }
    execl("/stream", "stream", setting("lab.port"), NULL);
    check(-1, "/stream");
}
