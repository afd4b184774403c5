# SPDX-License-Identifier: GPL-2.0-or-later
"""Results for people: tables as text, Markdown or reStructuredText.

A figure is the median of the counted rounds, with the smallest and the largest
in brackets.  "lost N" beside it: in at least one round N frames did not arrive,
so this figure is of other work than its neighbours'.
"""
import statistics
import textwrap


class Figure:
    """The values of one cell, one per counted round."""

    def __init__(self, unit=''):
        self.values, self.unit, self.lost, self.mark = [], unit, 0, ''

    def add(self, value, lost=0):
        self.values.append(value)
        self.lost = max(self.lost, lost)

    @property
    def median(self):
        return statistics.median(self.values) if self.values else None

    def __str__(self):
        if not self.values:
            return '-'
        text = short(self.median)
        if len(self.values) > 1:
            text += f' ({short(min(self.values))}-{short(max(self.values))})'
        if self.mark:
            text += f' {self.mark}'
        if self.lost:
            text += f' lost {self.lost:,}'
        return text

    def json(self):
        return {'median': self.median, 'min': min(self.values, default=None),
                'max': max(self.values, default=None), 'values': self.values,
                'lost': self.lost, 'mark': self.mark}


def short(v):
    """Three digits that mean something, grouped."""
    if v != v:
        return '-'
    if abs(v) >= 100:
        digits = max(len(str(int(abs(v)))) - 3, 0)
        return f'{int(round(v, -digits)):,}'
    return f'{v:.3g}'


class Goal:
    def __init__(self, text, met, detail):
        self.text, self.met, self.detail = text, met, detail

    def __str__(self):
        verdict = {True: 'met', False: 'MISSED', None: 'not measured'}[self.met]
        return f'{verdict}: {self.text}: {self.detail}'

    def json(self):
        return {'text': self.text, 'met': self.met, 'detail': self.detail}


class Table:
    """Rows of contenders; a row that could not run has a reason instead."""

    def __init__(self, item, title, columns):
        self.item, self.title, self.columns = item, title, columns
        self.rows, self.cannot = {}, {}
        self.notes, self.goals = [], []

    def figure(self, row, column):
        cells = self.rows.setdefault(row, {})
        return cells.setdefault(column, Figure())

    def median(self, row, column):
        f = self.rows.get(row, {}).get(column)
        return f.median if f else None

    def goal(self, text, detail, met):
        self.goals.append(Goal(text, met, detail))

    def ratio_goal(self, text, column, row, other, limit, least=False):
        """Row to OTHER, at most LIMIT, or at least."""
        a, b = self.median(row, column), self.median(other, column)
        if a is None or not b:
            self.goal(text, f'{column}: no figure', None)
            return
        r = a / b
        self.goal(text, f'{column}: {r:.3g}', r >= limit if least
                  else r <= limit)

    def cells(self):
        """Header, then rows."""
        out = [['', *self.columns]]
        for row, cells in self.rows.items():
            if row in self.cannot:
                continue
            out.append([row, *(str(cells.get(c, '-')) for c in self.columns)])
        return out

    def remarks(self):
        return [*self.notes, *(f'{row}: did not run: {why}'
                               for row, why in self.cannot.items())]

    def json(self):
        return {'item': self.item, 'title': self.title,
                'columns': list(self.columns),
                'rows': {r: {c: f.json() for c, f in cells.items()}
                         for r, cells in self.rows.items()},
                'cannot_run': self.cannot, 'notes': self.notes,
                'goals': [g.json() for g in self.goals]}


def wrap(text, indent='  '):
    return textwrap.fill(text, 79, initial_indent=indent,
                         subsequent_indent=indent + '  ',
                         break_on_hyphens=False, break_long_words=False)


def text(tables, machine):
    out = [f'{k}: {v}' for k, v in machine.items()]
    for t in tables:
        out += ['', f'{t.item}. {t.title}', '']
        rows = t.cells()
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        for n, row in enumerate(rows):
            out.append('  ' + '  '.join(
                c.ljust(w) if not i else c.rjust(w)
                for i, (c, w) in enumerate(zip(row, widths))).rstrip())
            if not n:
                out.append('  ' + '-' * (sum(widths) + 2 * len(widths) - 2))
        out += [''] if t.remarks() or t.goals else []
        out += [wrap(r) for r in t.remarks()]
        out += [wrap(str(g)) for g in t.goals]
    return '\n'.join(out) + '\n'


def markdown(tables, machine):
    out = ['| | |', '|---|---|', *(f'| {k} | {v} |'
                                   for k, v in machine.items())]
    for t in tables:
        head, *rows = t.cells()
        out += ['', f'### {t.item}. {t.title}', '',
                '| ' + ' | '.join(head) + ' |',
                '|---' + '|---:' * len(t.columns) + '|',
                *('| ' + ' | '.join(r) + ' |' for r in rows), '',
                *(f'- {x}' for x in (*t.remarks(), *t.goals))]
    return '\n'.join(out) + '\n'


def rst(tables, machine):
    def list_table(rows, header):
        lines = ['.. list-table::'] + \
            (['   :header-rows: 1'] if header else []) + ['']
        for row in rows:
            for i, cell in enumerate(row):
                lines.append(f'   {"* -" if not i else "  -"} {cell}'.rstrip())
        return lines + ['']

    out = list_table([[k, v] for k, v in machine.items()], False)
    for t in tables:
        title = f'{t.item}. {t.title}'
        out += [title, '~' * len(title), '', *list_table(t.cells(), True)]
        out += [f'- {x}' for x in (*t.remarks(), *t.goals)] + ['']
    return '\n'.join(out) + '\n'


FORMATS = {'text': text, 'markdown': markdown, 'rst': rst}
