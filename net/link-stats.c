/*
 * What the host's kernel counts of a network interface
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * Asks rtnetlink (RTM_GETSTATS, since Linux 4.7).  The same is in /sys, but
 * there for the network namespace in which /sys was mounted, and out of reach
 * after -run-with chroot.
 */

#include "qemu/osdep.h"
#include "net/link-stats.h"
#include "qemu/sockets.h"
#include <linux/if_link.h>
#include <linux/rtnetlink.h>

/* Ask for the statistics, and receive the answer; its length, or -1 */
static ssize_t link_stats_ask(unsigned ifindex, struct nlmsghdr *answer,
                              size_t size)
{
    struct {
        struct nlmsghdr head;
        struct if_stats_msg stats;
    } request = {
        .head = {
            .nlmsg_len = sizeof(request),
            .nlmsg_type = RTM_GETSTATS,
            .nlmsg_flags = NLM_F_REQUEST,
        },
        .stats = {
            .family = AF_UNSPEC,
            .ifindex = ifindex,
            .filter_mask = IFLA_STATS_FILTER_BIT(IFLA_STATS_LINK_64),
        },
    };
    int fd = qemu_socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    ssize_t len = -1;

    if (fd >= 0) {
        /* The answer is there when send() returns */
        if (send(fd, &request, sizeof(request), 0) == sizeof(request)) {
            len = recv(fd, answer, size, MSG_DONTWAIT);
        }
        close(fd);
    }
    return len;
}

bool net_link_tx_dropped(unsigned ifindex, uint64_t *dropped)
{
    union {
        struct nlmsghdr head;
        uint8_t bytes[1024];
    } answer;
    struct rtnl_link_stats64 stats = { 0 };
    ssize_t len = link_stats_ask(ifindex, &answer.head, sizeof(answer));
    const size_t head = NLMSG_SPACE(sizeof(struct if_stats_msg));
    struct rtattr *attr = (struct rtattr *)(answer.bytes + head);

    if (len < (ssize_t)head || answer.head.nlmsg_type != RTM_NEWSTATS) {
        return false;
    }
    for (len -= head; RTA_OK(attr, len); attr = RTA_NEXT(attr, len)) {
        if (attr->rta_type == IFLA_STATS_LINK_64) {
            memcpy(&stats, RTA_DATA(attr), MIN(sizeof(stats),
                                               RTA_PAYLOAD(attr)));
            *dropped = stats.tx_dropped;
            return true;
        }
    }
    return false;
}
