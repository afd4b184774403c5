/*
 * Net filters: active or not, by status and by the state of the VM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_FILTER_ACTIVITY_H
#define NET_FILTER_ACTIVITY_H

#include "net/filter.h"
#include "system/runstate.h"

/*
 * FilterActivity: the part of a filter's state that says when it works
 *
 * A filter is active when its status is on and the option for the VM's
 * present state, enable_when_running or enable_when_stopped, is on.
 */
typedef struct FilterActivity FilterActivity;

/* Called with the new value of @active, also once from set-up */
typedef void (FilterActivityChanged)(NetFilterState *nf, bool active);

struct FilterActivity {
    NetFilterState *nf;
    FilterActivityChanged *changed;

    bool when_running;
    bool when_stopped;
    bool when_stopped_set;      /* by the user */

    VMChangeStateEntry *vmstate;
    bool not_incoming;          /* inactive while waiting for a migration */
    bool vm_running;
    bool fixed;                 /* the options are, now */
    bool active;
};

/**
 * filter_activity_class_init:
 * @oc: class of a filter that has a FilterActivity
 *
 * Add the properties enable_when_running and enable_when_stopped, and active,
 * which can only be read.  The filter's file defines filter_activity_get().
 */
void filter_activity_class_init(ObjectClass *oc);

/**
 * filter_activity_get:
 * @obj: a filter whose class has been through filter_activity_class_init()
 *
 * Returns: the FilterActivity in @obj
 */
FilterActivity *filter_activity_get(Object *obj);

/**
 * filter_activity_init:
 * @act: part of @nf, zeroed; for the instance_init of @nf
 * @nf: the filter
 * @changed: told of each change once filter_activity_setup() was called
 */
void filter_activity_init(FilterActivity *act, NetFilterState *nf,
                          FilterActivityChanged *changed);

/**
 * filter_activity_check:
 * @act: the activity
 * @when_stopped: default of enable_when_stopped for a filter set up like this
 * @errp: pointer to a NULL-initialized error object
 *
 * Returns: false if the options leave no state in which to be active
 */
bool filter_activity_check(FilterActivity *act, bool when_stopped,
                           Error **errp);

/**
 * filter_activity_setup:
 * @act: the activity
 * @not_incoming: whether the filter is to be inactive, in spite of its
 *     options, while the VM waits for an incoming migration
 *
 * Follow the VM from now on, and tell the filter where it starts.  On start
 * of the VM the filter hears of it after all devices (their vhost has started
 * by then), on stop before them.
 */
void filter_activity_setup(FilterActivity *act, bool not_incoming);

/**
 * filter_activity_update:
 * @act: the activity
 *
 * The filter's status changed.
 */
void filter_activity_update(FilterActivity *act);

/**
 * filter_activity_cleanup:
 * @act: the activity, which may not have been set up
 */
void filter_activity_cleanup(FilterActivity *act);

#endif /* NET_FILTER_ACTIVITY_H */
