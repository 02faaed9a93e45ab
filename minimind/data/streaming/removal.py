"""Which shards leave the disk where it is to hold a few windows only.

    list of shards, windows that the run still needs -> Removal -> ShardStore.remove_but

Two machines may share a folder. The one that tokenises ends its work while both still read, and then the other one
takes over; a resumed run finds the shards of the one before. What is listed and still needed stays in both cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minimind.data.streaming.order import StreamOrder
from minimind.data.streaming.shards import Shard, ShardStore


class _NotListedError(Exception):
    """The list does not reach so far yet."""


class Removal:
    """Removes shards that are used up. Only for who holds the locks of the stores.

    Args:
        stores: one for each word.
        order_of: makes an order of windows over a function that gives shards.
        most: number of windows on the disk, from the one that the run is in.
    """

    def __init__(
        self,
        stores: Sequence[ShardStore],
        order_of: Callable[[Callable[[int, int], Shard | None]], StreamOrder],
        most: int,
    ) -> None:
        self._stores, self._most = stores, most
        # Makes no shard, other than the order that the builder follows.
        self._order = order_of(self._listed)
        self._known = 0
        self._is_at_end = False

    def before(self, order: StreamOrder, number: int, wanted: int, kept_from: int) -> None:
        """Remove what is in no window from that of a row on to the last one that the disk may hold.

        Args:
            order: windows, known up to this number.
            number: of the window that is made next.
            wanted: the last row that the run has asked for.
            kept_from: the row; not behind the last one.
        """
        self._look_ahead(wanted)
        known = self._known
        if order.window(number).end <= kept_from and number < known:
            return  # Windows that are over, which nobody makes again.
        used: list[set[int]] = [{len(store.shards) - 1} for store in self._stores]  # the order reads one ahead
        windows = [order.window(number), *(self._order.window(later) for later in range(number + 1, known))]
        while number > 0 and (window := order.window(number - 1)).end > kept_from:
            windows.append(window)
            number -= 1
        for window in windows:
            for part in window.parts:
                used[part.word].add(part.shard.number)
        for store, numbers in zip(self._stores, used, strict=True):
            store.remove_but(numbers)

    def may_hold(self, order: StreamOrder, number: int, wanted: int) -> bool:
        """Whether the disk may hold a window while the run is at a row; windows before it are known."""
        return number < self._most or order.window(number - self._most).end <= wanted

    def _look_ahead(self, wanted: int) -> None:
        """Count the windows that the disk may hold and whose shards are all in the list."""
        while not self._is_at_end and self.may_hold(self._order, self._known, wanted):
            try:
                self._order.window(self._known)
                self._known += 1
            except _NotListedError:
                # Behind this one are only windows that this process makes.
                self._is_at_end = True

    def _listed(self, word: int, number: int) -> Shard | None:
        store = self._stores[word]
        if number < len(store.shards):
            return store.shards[number]
        if not store.ended:
            raise _NotListedError
        return None
