//! Doubly linked lists whose links are in the elements, which are in a slab: an element can be in several
//! lists, and leaves any of them in constant time.

use slab::Slab;

/// No element.
const NONE: u32 = u32::MAX;

/// An element's neighbours in one list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    next: u32,
    prev: u32,
}

impl Links {
    /// The links of an element that is in no list.
    pub(super) const NONE: Self = Self { next: NONE, prev: NONE };

    /// The key of the element after this one.
    pub(super) const fn next(self) -> Option<u32> {
        if self.next == NONE { None } else { Some(self.next) }
    }

    /// The key of the element before this one.
    pub(super) const fn prev(self) -> Option<u32> {
        if self.prev == NONE { None } else { Some(self.prev) }
    }
}

/// The ends of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    front: u32,
    back: u32,
}

impl Default for List {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl List {
    /// A list without elements.
    pub(super) const EMPTY: Self = Self { front: NONE, back: NONE };

    pub(super) const fn is_empty(&self) -> bool {
        self.front == NONE
    }

    /// The key of the first element.
    pub(super) const fn front(&self) -> Option<u32> {
        if self.front == NONE { None } else { Some(self.front) }
    }

    /// The key of the last element.
    pub(super) const fn back(&self) -> Option<u32> {
        if self.back == NONE { None } else { Some(self.back) }
    }

    /// Appends the element `key`, which must not be in the list. `links` finds the links of this list in an
    /// element.
    #[inline]
    pub(super) fn push_back<T>(
        &mut self,
        slab: &mut Slab<T>,
        key: u32,
        links: impl Fn(&mut T) -> &mut Links,
    ) {
        let prev = std::mem::replace(&mut self.back, key);
        *links(&mut slab[key as usize]) = Links { next: NONE, prev };
        match prev {
            NONE => self.front = key,
            prev => links(&mut slab[prev as usize]).next = key,
        }
    }

    /// Puts the element `key`, which must not be in the list, at its front.
    pub(super) fn push_front<T>(
        &mut self,
        slab: &mut Slab<T>,
        key: u32,
        links: impl Fn(&mut T) -> &mut Links,
    ) {
        let next = std::mem::replace(&mut self.front, key);
        *links(&mut slab[key as usize]) = Links { next, prev: NONE };
        match next {
            NONE => self.back = key,
            next => links(&mut slab[next as usize]).prev = key,
        }
    }

    /// Inserts the element `key`, which must not be in the list, after another, or at the front.
    pub(super) fn insert_after<T>(
        &mut self,
        slab: &mut Slab<T>,
        key: u32,
        before: Option<u32>,
        links: impl Fn(&mut T) -> &mut Links,
    ) {
        let Some(prev) = before else { return self.push_front(slab, key, links) };
        let next = links(&mut slab[prev as usize]).next;
        if next == NONE {
            return self.push_back(slab, key, links);
        }
        *links(&mut slab[key as usize]) = Links { next, prev };
        links(&mut slab[prev as usize]).next = key;
        links(&mut slab[next as usize]).prev = key;
    }

    /// Takes the element `key`, which must be in the list, out of it. The slab keeps it.
    #[inline]
    pub(super) fn remove<T>(
        &mut self,
        slab: &mut Slab<T>,
        key: u32,
        links: impl Fn(&mut T) -> &mut Links,
    ) {
        let Links { next, prev } = std::mem::replace(links(&mut slab[key as usize]), Links::NONE);
        match next {
            NONE => self.back = prev,
            next => links(&mut slab[next as usize]).prev = prev,
        }
        match prev {
            NONE => self.front = next,
            prev => links(&mut slab[prev as usize]).next = next,
        }
    }
}
