/*
 * Net filters: active or not, by status and by the state of the VM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/*
 * "Stopped" is paused, finished with an outgoing migration, or not started
 * because of -S.  A suspended VM (ACPI S3) counts as running, since its
 * devices are, and so does one that is about to start.
 *
 * A VM that waits for an incoming migration is neither, for a filter that
 * has to do with the host's side: the network's frames are not for this VM
 * yet, and a frame that it is given is lost when its devices start.
 *
 * The state is the one that the handlers were told last, not the one that
 * runstate_is_running() gives: the latter changes before the devices know.
 */

#include "qemu/osdep.h"
#include "net/filter-activity.h"
#include "qapi/error.h"
#include "system/system.h"
#include "trace.h"

/* Behind each device, whose priority is its depth in the device tree */
#define FILTER_VMSTATE_PRIORITY INT_MAX

void filter_activity_update(FilterActivity *act)
{
    bool active = act->nf->on &&
                  !(act->not_incoming && runstate_check(RUN_STATE_INMIGRATE)) &&
                  (act->vm_running ? act->when_running : act->when_stopped);

    if (act->vmstate) {
        trace_filter_activity_update(
            object_get_canonical_path_component(OBJECT(act->nf)), active,
            act->nf->on, act->vm_running);
        act->active = active;
        act->changed(act->nf, active);
    }
}

static void filter_activity_vm_change_state(void *opaque, bool running,
                                            RunState state)
{
    FilterActivity *act = opaque;

    act->vm_running = running;
    filter_activity_update(act);
}

bool filter_activity_check(FilterActivity *act, bool when_stopped,
                           Error **errp)
{
    if (!act->when_stopped_set) {
        act->when_stopped = when_stopped;
    }
    if (!act->when_running && !act->when_stopped) {
        error_setg(errp, "'enable_when_running' and 'enable_when_stopped' "
                   "are both off: the filter would never be active");
        return false;
    }
    return true;
}

void filter_activity_setup(FilterActivity *act, bool not_incoming)
{
    act->not_incoming = not_incoming;
    act->vm_running = runstate_is_live(runstate_get()) ||
                      (runstate_check(RUN_STATE_PRELAUNCH) && autostart);
    act->vmstate = qemu_add_vm_change_state_handler_prio(
        filter_activity_vm_change_state, act, FILTER_VMSTATE_PRIORITY);
    filter_activity_update(act);
}

void filter_activity_cleanup(FilterActivity *act)
{
    if (act->vmstate) {
        qemu_del_vm_change_state_handler(act->vmstate);
        act->vmstate = NULL;
    }
    act->active = false;
}

void filter_activity_init(FilterActivity *act, NetFilterState *nf,
                          FilterActivityChanged *changed)
{
    act->nf = nf;
    act->changed = changed;
    act->when_running = true;
}

static bool filter_activity_may_change(FilterActivity *act, Error **errp)
{
    if (act->fixed) {
        error_setg(errp, "'enable_when_running' and 'enable_when_stopped' of a "
                   "filter for the frames of a stopped VM cannot be changed; "
                   "make a new filter");
    }
    return !act->fixed;
}

static bool filter_activity_get_when_running(Object *obj, Error **errp)
{
    return filter_activity_get(obj)->when_running;
}

static void filter_activity_set_when_running(Object *obj, bool value,
                                             Error **errp)
{
    FilterActivity *act = filter_activity_get(obj);

    if (filter_activity_may_change(act, errp)) {
        act->when_running = value;
        filter_activity_update(act);
    }
}

static bool filter_activity_get_when_stopped(Object *obj, Error **errp)
{
    return filter_activity_get(obj)->when_stopped;
}

static void filter_activity_set_when_stopped(Object *obj, bool value,
                                             Error **errp)
{
    FilterActivity *act = filter_activity_get(obj);

    if (filter_activity_may_change(act, errp)) {
        act->when_stopped = value;
        act->when_stopped_set = true;
        filter_activity_update(act);
    }
}

static bool filter_activity_get_active(Object *obj, Error **errp)
{
    return filter_activity_get(obj)->active;
}

void filter_activity_class_init(ObjectClass *oc)
{
    object_class_property_add_bool(oc, "active", filter_activity_get_active,
                                   NULL);
    object_class_property_add_bool(oc, "enable_when_running",
                                   filter_activity_get_when_running,
                                   filter_activity_set_when_running);
    object_class_property_add_bool(oc, "enable_when_stopped",
                                   filter_activity_get_when_stopped,
                                   filter_activity_set_when_stopped);
}
