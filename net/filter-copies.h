/*
 * Net filters: copies of the packets that vhost moves
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_FILTER_COPIES_H
#define NET_FILTER_COPIES_H

#include "net/filter.h"

/**
 * filter_copies_reach:
 * @nf: a filter that is about to be set up, on a netdev with vhost
 * @errp: pointer to a NULL-initialized error object
 *
 * The allow_vhost of a class of filters that only look at packets.
 *
 * Returns: whether a filter-redirector with in_netdev sends its copies to the
 * place in the chain that @nf is to have; if not, false with @errp set
 */
bool filter_copies_reach(NetFilterState *nf, Error **errp);

#endif /* NET_FILTER_COPIES_H */
