# SPDX-License-Identifier: GPL-2.0-or-later
#
# The commands of this repository; `make help` lists them. The work is done
# by the scripts in dev/ and lab/, each of which opens with what it is for.
#
#   QEMU_DIR     where the QEMU tree, the builds and the downloads live
#   BASE         the base to take, of those in bases/; else the newest whose
#                source can be had.  Another than the one in QEMU_DIR/src has
#                its tree and its builds in QEMU_DIR/base-BASE
#   QEMU_SOURCE  take QEMU's source from here instead of the Debian mirror:
#                a folder with the source package, an unpacked tree, a tarball,
#                or a git clone; its version selects the base
#   PREFIX       where `make install` puts QEMU
#   CONFIGURE    more options of QEMU's configure, for `make install`
#   DEBUG_INFO   1: compile with debug information

QEMU_DIR ?= .qemu
PREFIX ?= /opt/qemu-redirect
ifneq ($(BASE),)
override QEMU_DIR := $(shell QEMU_DIR='$(QEMU_DIR)' dev/bases.py dir '$(BASE)')
ifeq ($(QEMU_DIR),)
$(error BASE=$(BASE))
endif
endif
export QEMU_DIR BASE

.PHONY: help deps src build check demo demo-vhost export verify verify-each \
	series clean check-all bench install rebase

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1:/p' Makefile | \
	    while IFS=: read -r name text; do printf '%-12s %s\n' "$$name" "$$text"; done

deps: ## install the Debian packages that are missing (dev/packages)
	@dev/deps

src: deps ## fetch QEMU, check it, and apply the series as git commits
	@dev/src

build: src ## configure and compile into .qemu/build
	@dev/build

check: src ## everything that must be green: verify, unit tests, qtests, lab
	@dev/check

check-all: build ## each base, every cell of the migration matrix, the long runs (hours)
	@for base in $$(dev/bases.py others); do \
	    $(MAKE) BASE=$$base check || exit; \
	done
	@dev/meson-tests vm-all
	@lab/matrix --native --only no-vhost
	@lab/matrix --only '(?<!no)-vhost'
	@lab/libvirt --apparmor
	@lab/pingpong 100
	@lab/tcp 1000
	@dev/test-fresh other

install: src ## compile for PREFIX (/opt/qemu-redirect), and install there
	@PREFIX="$(PREFIX)" CONFIGURE="$(CONFIGURE)" dev/build install

demo: build ## the main job on real input; ends with a table and a picture
	@lab/demo

demo-vhost: build ## the same with a real vhost-net, if need be in a VM (slow)
	@lab/demo --vhost

bench: build ## speed of the data path against others, as tables (slow)
	@dev/build stock
	@bench/run

export: ## write the edits made in .qemu/src back into this repository
	@dev/qtree.py export

verify: src ## repository and tree in step, hooks exact, checkpatch, git am, lint
	@dev/verify

verify-each: src ## every commit of the series builds, unit tests pass (slow)
	@dev/verify-each

series: src ## patch files for `git am` on the base, in .qemu/series
	@dev/qtree.py series

rebase: deps ## bring the series FROM=base TO=base; again, to go on (HACKING.md)
	@dev/rebase "$(FROM)" "$(TO)"

clean: ## remove tree and builds, keep the downloads; refuses to lose edits
	@dev/clean
