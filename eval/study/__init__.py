"""The blind human study: pairs of pictures, compared by people who do not know the methods."""
