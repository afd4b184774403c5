# SPDX-License-Identifier: GPL-2.0-or-later
#
# The commands of this repository; `make help` lists them. The work is done
# by the scripts in dev/ and lab/, each of which opens with what it is for.
#
#   QEMU_DIR     where the QEMU tree, the builds and the downloads live
#   QEMU_SOURCE  take QEMU's source from here instead of the Debian mirror:
#                a folder with the source package, an unpacked tree, or a
#                git clone at the tag
#   PREFIX       where `make install` puts QEMU
#   CONFIGURE    more options of QEMU's configure, for `make install`

QEMU_DIR ?= .qemu
PREFIX ?= /opt/qemu-redirect
export QEMU_DIR

.PHONY: help deps src build check demo export verify verify-each series clean \
	check-all bench install

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

check-all: build ## every cell of the migration matrix, and the long runs (hours)
	@dev/meson-tests vm-all
	@lab/matrix --native --only no-vhost
	@lab/matrix --only '(?<!no)-vhost'
	@lab/pingpong 100
	@lab/tcp 1000
	@dev/test-fresh other

install: src ## compile for PREFIX (/opt/qemu-redirect), and install there
	@PREFIX="$(PREFIX)" CONFIGURE="$(CONFIGURE)" dev/build install

demo: build ## the main job on real input; ends with a table and a picture
	@lab/demo

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

clean: ## remove tree and builds, keep the downloads; refuses to lose edits
	@dev/clean
